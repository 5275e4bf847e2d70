"""Who may have which sandbox: the document ``containers/policy``, written by the operator.

Money limits of ticks and days hang on the mount, not here.
"""

from __future__ import annotations

import errno
from collections.abc import Sequence
from fnmatch import fnmatchcase

import msgspec

from agentfs.budget import check_usd
from agentfs.containers.documents import BOUNDS, Limits, Request, check_limits
from agentfs.errors import error


class Policy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """ContainerPolicy. Images and providers are globs; blocked wins; null is "all".

    ``defaults`` hold for a request that names no limit, ``most`` is what one may name. ``max_sessions``: how many of
    an agent's may run at a time, with a tick that runs in a sandbox as one. ``default_image`` "" is the provider's own.
    ``allow_pull``: images that are not there are fetched, where the provider does that.
    """

    allowed_providers: list[str] | None = None
    allowed_images: list[str] | None = None
    blocked_images: list[str] = []
    default_provider: str = ""
    default_image: str = ""
    allow_pull: bool = True
    allow_network: bool = False
    defaults: Limits = Limits()
    most: Limits = Limits(
        max_time_secs=3600, max_memory_mb=4096, max_disk_mb=4096, max_cpu_cores=4.0, max_processes=1024,
        max_files=1_000_000,
    )  # fmt: skip
    max_sessions: int = 8
    max_cost_usd: int | None = None
    require_idempotency: bool = False

    def limits(self, request: Request) -> Limits:
        """What a session of *request* may use. EACCES naming the field that asks for more than is allowed."""
        found: dict[str, float | bool] = {}
        for name in BOUNDS:
            wanted, most = getattr(request.limits, name), getattr(self.most, name)
            if wanted is not None and wanted > most:
                raise error(errno.EACCES, detail=f"limits.{name}: the policy allows {most}")
            found[name] = min(getattr(self.defaults, name), most) if wanted is None else wanted
        if request.limits.allow_network and not self.allow_network:
            raise error(errno.EACCES, detail="limits.allow_network: the policy forbids it")
        if request.repo is not None and not self.allow_network:
            raise error(errno.EACCES, detail="repo: the policy forbids the network")
        return msgspec.convert({**found, "allow_network": bool(request.limits.allow_network)}, Limits)

    def check(self, request: Request, image: str) -> None:
        """EACCES when *image*, "" the provider's own, is not allowed; EINVAL where *request* lacks what is required."""
        if not _fits(image, self.allowed_images) or any(fnmatchcase(image, p) for p in self.blocked_images):
            raise error(errno.EACCES, detail=f"image {image!r}: the policy forbids it")
        if self.require_idempotency and not request.idempotency_key:
            raise error(errno.EINVAL, detail="idempotency_key: the policy requires it")

    def allows(self, provider: str) -> bool:
        """Whether sessions may be at *provider*."""
        return _fits(provider, self.allowed_providers)


def _fits(name: str, patterns: Sequence[str] | None) -> bool:
    return patterns is None or any(fnmatchcase(name, pattern) for pattern in patterns)


def parse(doc: bytes) -> Policy:
    """*doc* as a `Policy`. EINVAL naming the field."""
    try:
        policy = msgspec.json.decode(doc, type=Policy)
    except (msgspec.DecodeError, RecursionError) as exc:
        raise error(errno.EINVAL, detail=f"policy: {exc}") from exc
    check_limits(policy.defaults)
    check_limits(policy.most)
    if policy.max_sessions < 0:
        raise error(errno.EINVAL, detail="max_sessions: want 0 or more")
    if policy.max_cost_usd is not None:
        check_usd("max_cost_usd", policy.max_cost_usd)
    return policy

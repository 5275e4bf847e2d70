"""The one table of limits: every bound of the runtime with its default; the errno a caller gets is in its comment.

Values only; `agentfs.config` reads them from file, environment and flags.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Sizes are bytes unless the name says otherwise."""

    document_bytes: int = 1 << 20  # EFBIG: one document, request or envelope
    body_bytes: int = 16 << 20  # EFBIG: one HTTP body, one handle's writes
    ctl_line_bytes: int = 64 << 10  # EFBIG
    kv_value_bytes: int = 1 << 20  # EFBIG
    kv_keys: int = 10_000  # ENOSPC, per agent
    alarms: int = 1_000  # ENOSPC, per agent
    agents: int = 100_000  # ENOSPC
    handles: int = 1024  # EMFILE, per principal; blocked readers have their own
    watchers: int = 256  # EMFILE, over HTTP, per agent or operator's token
    blocked_readers: int = 4096  # EMFILE, on the mount
    ring_bytes: int = 1 << 20  # a memory log rotates here
    log_bytes: int = 16 << 20  # a durable log rotates here
    seen_keys: int = 10_000  # oldest forgotten first, per agent
    receipts: int = 100_000  # oldest forgotten first, per agent; never one that is still pending
    hops: int = 32  # ELOOP dead letter
    effects: int = 1_000  # effects one tick may return
    output_bytes: int = 4 << 20  # what an exec program may print in one tick
    effects_held: int = 10_000  # ENOSPC: entries of the idempotency journal, per agent
    effect_ttl_seconds: int = 3_600  # how long an outcome is replayed once its envelope is gone for good
    account_days: int = 62  # how long a day's sums are kept
    approvals: int = 1_000  # ENOSPC: requests that wait or were decided, per agent
    approval_ttl_seconds: int = 86_400  # how long a request waits, and how long an allowed one may be used
    confirm_seconds: int = 300  # ETIMEDOUT: how long a call on a mount with confirm waits to be allowed
    tokens: int = 10_000  # ENOSPC: capability tokens not yet expired, per issuer
    grants: int = 1_000  # ENOSPC: keys let in, per agent
    nonces: int = 200_000  # ENOBUFS: signed requests that are not too old yet, of everybody
    peer_nonces: int = 10_000  # ENOBUFS: as above, of one key
    key_grace_seconds: int = 604_800  # how long a rotated key still verifies and decrypts
    secrets: int = 1_000  # ENOSPC: per agent
    registries: int = 100  # ENOSPC: logins per agent
    secret_bytes: int = 64 << 10  # EFBIG
    jobs: int = 10_000  # ENOSPC: requests to models that run or ended lately, per agent
    jobs_running: int = 256  # requests to models under way at a time; others are pending
    job_ttl_seconds: int = 604_800  # how long an ended one is kept, with its stream
    sandboxes: int = 1_000  # ENOSPC: sessions in sandboxes that run or ended lately, per agent
    sandboxes_running: int = 64  # sessions that run at a time in one runtime; others wait in provisioning
    sandbox_ttl_seconds: int = (
        86_400  # how long an ended one is kept, with its output and files, unless it asks for less
    )
    warm_seconds: int = 300  # how long the sandbox of a program is kept behind its last tick
    execs: int = 1_000  # ENOSPC: commands of one session; oldest ended ones are not forgotten before it
    execs_running: int = 32  # ENOBUFS: at a time, in one session
    conversations: int = 1_000  # the one without a word for the longest time is forgotten first, per agent
    agent_handles: int = 512  # EMFILE: per agent or operator's token, with all made from it
    agent_rate: int = 2_000  # EAGAIN, ENOBUFS: opens, changes and writes a second, as above
    agent_write_bytes: int = 64 << 20  # ENOBUFS: bytes written a second, as above
    parallel_ticks: int = 8  # ticks that run at the same time in one runtime

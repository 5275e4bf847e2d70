"""The contract of every file service, in four tiers; one run walks a service and reports all violations at once.

The rules are in `reading`, `writing` and `streaming`; nothing here knows a service, a face or a store.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Collection

import anyio

from agentfs.types import ROOT, Kind, Path
from conformance import reading, streaming, writing
from conformance.bench import TIERS, Bench, Rule

RULES: tuple[Rule, ...] = (*reading.RULES, *writing.RULES, *streaming.RULES)
CHECK_S = 60.0


def _places(bench: Bench, rule: Rule) -> list[Path]:
    if not rule.kinds:
        return [ROOT]
    if rule.tier == "WRITE" and rule.kinds == {Kind.DATA}:
        return bench.data_dirs
    return [path for path, st in bench.found if st.kind in rule.kinds]


async def _broken(bench: Bench, rule: Rule, path: Path) -> str:
    try:
        with anyio.fail_after(CHECK_S):
            await rule.check(bench, path)
    except FileNotFoundError as exc:
        if rule.kinds and not await _is_there(bench, path):
            return ""  # the file went while it was looked at: no promise broken
        return f"{rule.name} {path or '/'}: {exc!r}"
    except Exception as exc:  # noqa: BLE001 (whatever a service does wrong is this suite's result)
        return f"{rule.name} {path or '/'}: {type(exc).__name__}: {exc}"
    return ""


async def _is_there(bench: Bench, path: Path) -> bool:
    try:
        await bench.service.stat(path)
    except OSError as exc:
        return exc.errno != errno.ENOENT
    return True


async def broken(bench: Bench, tiers: Collection[str] = TIERS) -> AsyncIterator[str]:
    """Each violation as it is found, as ``rule path: what happened``."""
    try:
        await bench.walk()
        if "WRITE" in tiers:
            await bench.find_data()
    except Exception as exc:  # noqa: BLE001 (as above)
        yield f"walk: {type(exc).__name__}: {exc}"
        return
    for rule in RULES:
        if rule.tier not in tiers:
            continue
        if missing := rule.needs - set(bench.expresses):
            bench.notes.append(f"{rule.name}: not expressed: {' '.join(sorted(missing))}")
            continue
        for path in _places(bench, rule):
            if text := await _broken(bench, rule, path):
                yield text


async def violations(bench: Bench, tiers: Collection[str] = TIERS) -> list[str]:
    """Everything *bench*'s service does wrong in *tiers*; empty when nothing is."""
    return [text async for text in broken(bench, tiers)]

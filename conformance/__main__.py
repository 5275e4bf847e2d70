"""``python -m conformance MODULE:FACTORY [--tier READ ...]``: the file suite on anyone's service.

FACTORY is called without arguments and gives a `FileService`, or an awaitable of one. Every violation is printed on a
line of its own. Exit codes: 0 none, 1 violations, 2 the service could not be made.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import sys

import anyio

from agentfs.service import FileService
from conformance.bench import TIERS, Bench
from conformance.drivers import ALL
from conformance.suite import violations


async def make(ref: str) -> FileService:
    """The service that MODULE:FACTORY gives."""
    module, _, name = ref.partition(":")
    made = getattr(importlib.import_module(module), name)()
    made = await made if inspect.isawaitable(made) else made
    if not isinstance(made, FileService):
        raise TypeError(f"{ref} gave {type(made).__name__}, not a FileService")
    return made


async def run(ref: str, tiers: list[str]) -> int:
    """Test one service; the exit code."""
    try:
        service = await make(ref)
    except Exception as exc:  # noqa: BLE001  # whatever the factory does wrong is the answer
        sys.stderr.write(f"conformance: {ref}: {type(exc).__name__}: {exc}\n")
        return 2
    bench = Bench(service, ALL)
    found = await violations(bench, tiers or list(TIERS))
    sys.stdout.writelines(f"{line}\n" for line in found)
    sys.stderr.writelines(f"note: {line}\n" for line in sorted(set(bench.notes)))
    return 1 if found else 0


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m conformance", description=__doc__)
    parser.add_argument("service", metavar="MODULE:FACTORY")
    parser.add_argument("--tier", action="append", choices=TIERS, default=[], help="only these tiers")
    words = parser.parse_args()
    sys.exit(anyio.run(run, words.service, words.tier, backend="trio"))


if __name__ == "__main__":
    main()

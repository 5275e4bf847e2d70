"""The shell that a container is given for its one command: it waits for the command on its stdin, then becomes it.

What a command is told so (its words, its environment) stands in no description of the container. No I/O.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Final

WAIT: Final = [
    "/bin/sh",
    "-c",
    "unset _n _code; _n='\n'\nIFS= read -r _code || exit 125\neval \"$_code\"",
]
"""`read` takes no byte behind its line, so what follows is the command's own stdin."""


def told(argv: Sequence[str], env: Mapping[str, str], cwd: str) -> bytes:
    """The one line that `WAIT` reads to become *argv* in the absolute *cwd*; 126 when that cannot be entered.

    A name of *env* that the shell keeps for itself stays as the shell has it.
    """
    exports = [f"command export {_quoted(f'{name}={value}')} 2>/dev/null" for name, value in env.items()]
    words = " ".join(_quoted(word) for word in argv)
    code = "; ".join([*exports, f"cd -- {_quoted(cwd)} || exit 126", f"exec {words}"])
    return f"{code}\n".encode(errors="surrogateescape")


def _quoted(text: str) -> str:
    return shlex.quote(text).replace("\n", "'\"$_n\"'")  # a newline is always within quotes

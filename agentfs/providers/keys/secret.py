"""What holds secret bytes in memory: a value that shows itself nowhere.

It must not protect against a debugger or a core dump: Python cannot wipe memory.
"""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """Secret bytes whose text is always ``Secret(...)``: in a log, a traceback, a format or a comparison's report.

    Not hashable, not picklable, compared in constant time. Text is taken as UTF-8, surrogates included, as is.
    """

    __slots__ = ("_held",)

    def __init__(self, value: bytes | str) -> None:
        self._held = value.encode("utf-8", "surrogatepass") if isinstance(value, str) else bytes(value)

    def reveal(self) -> bytes:
        """The bytes themselves; who calls this sees to it that they go nowhere else."""
        return self._held

    def __repr__(self) -> str:
        return "Secret(...)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and hmac.compare_digest(self._held, other._held)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not pickled")

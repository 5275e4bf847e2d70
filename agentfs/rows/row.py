"""`Row`: what every row of every table is."""

from __future__ import annotations

from typing import ClassVar

import msgspec


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """A row of the table ``TABLE`` with primary key ``KEY``; ``seq`` 0 is replaced by the writer on insert.

    ``INDEX`` names the columns (after the ``agent`` prefix) that `Store.scan` may order by.
    """

    TABLE: ClassVar[str]
    KEY: ClassVar[tuple[str, ...]]
    INDEX: ClassVar[tuple[str, ...]] = ()

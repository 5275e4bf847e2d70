"""`audit`: whether the money in a store adds up: what is held on accounts is what is held open, and by something.

It reads only; damage of the store itself is the store's own check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import msgspec

from agentfs.budget import key_of
from agentfs.engine.journal import OPEN
from agentfs.ports import Charge, Store
from agentfs.rows import AccountRow, EffectRow, HoldRow


async def audit(store: Store) -> Sequence[str]:
    """Every fault, one sentence each."""
    faults, held = [], Counter[tuple[str, str, str]]()
    holds = await store.scan(HoldRow)
    for hold in holds:
        for charge in msgspec.json.decode(hold.charges, type=tuple[Charge, ...]):
            held[key_of(charge)] += hold.amount_usd
    for row in await store.scan(AccountRow):
        key = (row.agent, row.account, row.period)
        known = held.pop(key, 0)
        if row.reserved_usd != known or row.spent_usd < 0:
            faults.append(f"account {'/'.join(key)}: {row.reserved_usd} reserved, but {known} held")
    faults += [f"account {'/'.join(key)}: {amount} held, but there is no account" for key, amount in held.items()]
    effects = await store.scan(EffectRow)
    opened = {(row.agent, row.id) for row in effects if row.state == OPEN}
    kept = {(hold.agent, hold.id) for hold in holds}
    faults += [f"effect {agent}/{effect}: open without a reservation" for agent, effect in sorted(opened - kept)]
    closed = {(row.agent, row.id) for row in effects if row.state != OPEN}
    faults += [f"effect {agent}/{effect}: over, but its reservation stands" for agent, effect in sorted(closed & kept)]
    return faults

"""The parts below an agent made of a prompt: what fits into a request, steps that are done once, what is remembered."""

from __future__ import annotations

import errno
from typing import Any

import msgspec
import pytest
from engines import Script, dead, fails, lines, running, send, settle, started

from agentfs.compute.prices import likely_tokens
from agentfs.engine.context import AgentContext
from agentfs.engine.memory import forget
from agentfs.engine.money import Done
from agentfs.engine.settings import parse_settings
from agentfs.engine.trigger import Trigger
from agentfs.limits import Limits
from agentfs.ports import Store
from agentfs.providers.clock import ManualClock
from agentfs.providers.programs.talk import DROPPED, Exchange, fitted, stored
from agentfs.rows import ConversationRow, EffectRow

SYSTEM = {"role": "system", "content": "be kind"}


def exchange(name: str, result: int = 300) -> Exchange:
    call = {"id": "c", "type": "function", "function": {"name": "read", "arguments": "{}"}}
    return [
        {"role": "user", "content": f"ask {name}"},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": name * result},
        {"role": "assistant", "content": f"answer {name}"},
    ]


@pytest.mark.parametrize("tokens", range(0, 1200, 7))
def test_what_fits_is_sound(tokens: int) -> None:
    """Whatever the room: system first, the whole message last, no result without its call, nothing in another order."""
    past, turn = [exchange("a"), exchange("b"), exchange("c")], exchange("d", 100)[:3]
    found = fitted(SYSTEM, past, turn, tokens)
    assert found[0] == SYSTEM and [m["role"] for m in found[-3:]] == ["user", "assistant", "tool"]
    calls, results = ([m for m in found if m.get(k)] for k in ("tool_calls", "tool_call_id"))
    assert len(calls) == len(results)
    spoken = [m["content"] for m in found if m["role"] == "user"]
    assert spoken == ["ask a", "ask b", "ask c", "ask d"][-len(spoken) :]
    if len(found) > 4 or found[-1]["content"] != DROPPED:
        assert likely_tokens(found) <= tokens


def test_tools_of_old_exchanges_give_way_before_words_do() -> None:
    past = [exchange("a"), exchange("b")]
    whole = fitted(SYSTEM, past, [], 10_000)
    assert whole == [SYSTEM, *past[0], *past[1]]
    found = fitted(SYSTEM, past, [], likely_tokens(whole) - 1)
    assert found == [SYSTEM, past[0][0], past[0][3], *past[1]]


def test_a_cut_file_gives_whole_exchanges() -> None:
    records = [{"envelope_id": name, **m} for name in ("m1", "m2") for m in exchange(name, 1)]
    tail = b"".join(msgspec.json.encode(record) + b"\n" for record in records)
    assert stored(tail) == [exchange("m1", 1), exchange("m2", 1)]
    assert stored(tail[30:]) == [exchange("m2", 1)] and stored(b'["x"]\n\xff\n{"role":7}\n') == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt", " "), ("max_steps", 0), ("context_tokens", 1), ("temperature", -1), ("tools", ["rm"]),
        ("max_cost_usd", -1),
    ],
)  # fmt: skip
def test_a_bad_program_names_its_field(field: str, value: Any) -> None:
    doc = {"program": {"kind": "llm", "prompt": "x", field: value}}
    with pytest.raises(OSError, match=field) as caught:
        parse_settings(msgspec.json.encode(doc))
    assert caught.value.errno == errno.EINVAL


async def test_a_step_is_done_once_over_all_attempts(store: Store, clock: ManualClock) -> None:
    done: list[str] = []

    async def act(self: Script, ctx: AgentContext, trigger: Trigger) -> None:
        async def do(key: str) -> Done:
            done.append(key)
            return Done({"n": len(done)}, 0)

        assert await ctx.step("1.1", ["write", "x"], do) == {"n": 1}
        await fails(errno.EEXIST, ctx.step("1.1", ["write", "y"], do))
        if trigger.attempt < 3:
            raise ValueError("again")

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, retry={"base_ms": 0})
        await send(engine, "a", "go", id="m1")
        await settle(engine)
        assert done == ["a:step:m1/1.1"] and not await dead(engine, "a")
        (row,) = await store.scan(EffectRow, "a")
        assert (row.state, row.reserved_usd, row.spent_usd, row.envelope) == ("done", 0, 0, "m1")


@pytest.mark.parametrize("is_repeatable", [True, False])
async def test_a_step_that_was_cut_off(store: Store, clock: ManualClock, *, is_repeatable: bool) -> None:
    done: list[str] = []

    async def act(self: Script, ctx: AgentContext, trigger: Trigger) -> None:
        async def do(key: str) -> Done:
            done.append(key)
            if trigger.attempt == 1:
                raise ValueError("cut off: nobody knows")
            return Done("well", 0)

        step = ctx.step("1.1", "x", do, is_repeatable=is_repeatable)
        if trigger.attempt == 1 or is_repeatable:
            ctx.reply(await step)
        else:
            await fails(errno.EREMOTEIO, step)

    Script.act = act
    async with running(store, clock) as engine:
        await started(engine, retry={"base_ms": 0})
        await send(engine, "a", "go")
        await settle(engine)
        assert len(done) == (2 if is_repeatable else 1)
        assert len(await lines(engine, "a", "outbox")) == (1 if is_repeatable else 0)


async def test_the_oldest_conversation_is_forgotten(store: Store, clock: ManualClock) -> None:
    async def act(self: Script, ctx: AgentContext, trigger: Trigger) -> None:
        ctx.remember(trigger.source, [{"role": "user", "content": trigger.payload}])
        if trigger.payload == "fail":
            raise ValueError("and nothing is kept")

    Script.act = act
    async with running(store, clock, Limits(conversations=2)) as engine:
        await started(engine, retry={"attempts": 1})
        for source, text in [("ada", "1"), ("bob", "2"), ("ada", "3"), ("cy", "4"), ("dan", "fail")]:
            await send(engine, "a", text, source=source)
            await settle(engine)
        assert [row.name for row in await store.scan(ConversationRow, "a")] == ["ada", "cy"]
        assert [line["content"] for line in await lines(engine, "a", "memory-ada")] == ["1", "3"]
        assert await lines(engine, "a", "memory-bob") == [] == await lines(engine, "a", "memory-dan")
        await forget(engine.core, "a", "ada")
        assert await lines(engine, "a", "memory-ada") == []
        await fails(errno.ENOENT, forget(engine.core, "a", "ada"))

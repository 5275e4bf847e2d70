"""kill -9 around a call to a payment provider: no double charge, no reservation that stays, a sound store."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import fake_bank
import pytest
from fake_bank import FakeBank
from machine import Machine

PAYER = """
import httpx
from agentfs.engine.agent import Agent
from agentfs.engine.money import Done

BANK = "{url}"


class Payer(Agent):
    async def on_trigger(self, ctx, trigger):
        async with httpx.AsyncClient(trust_env=False) as http:

            async def pay(key):
                headers, doc = {{"Idempotency-Key": key}}, {{"amount_usd": 30}}
                answer = await http.post(f"{{BANK}}/charges", json=doc, headers=headers)
                return Done(answer.json(), answer.json()["charged_usd"])

            async def ask(key):
                answer = await http.get(f"{{BANK}}/charges/{{key}}")
                return Done(answer.json(), answer.json()["charged_usd"]) if answer.status_code == 200 else None

            receipt = await ctx.effect("bank", trigger.payload, pay, max_cost_usd=50{ask})
            ctx.reply(receipt)
"""
POINTS = ("effect.reserved", "effect.called", "effect.finished")


@pytest.fixture
def bank() -> Iterator[FakeBank]:
    with fake_bank.serving() as running:
        yield running


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    machine = Machine(tmp_path)
    machine.env["AGENTFS_FUSE"] = "false"
    yield machine
    machine.env.pop("AGENTFS_FAULT", None)
    machine.run("umount")


def curl(machine: Machine, words: str) -> str:
    done = machine.shell(f'curl -s -H "Authorization: Bearer $TOKEN" {words}')
    return done.stdout


def crashed(machine: Machine, bank: FakeBank, point: str, ask: str) -> dict[str, object]:
    """Send one message to an agent that pays, have the runtime die at *point*, start it again; its status at rest."""
    payer = machine.state.path.parent / "payer.py"
    payer.write_text(PAYER.format(url=bank.url, ask=ask))
    machine.env["AGENTFS_FAULT"] = point
    machine.run("mount")
    program = {"kind": "inline", "ref": f"{payer}:Payer"}
    doc = json.dumps({"name": "payer", "program": program, "retry": {"base_ms": 10, "attempts": 3}})
    assert '"payer"' in curl(machine, f"-d '{doc}' $URL/agents/new")
    pid = machine.pid()
    curl(machine, """-d '{"id": "m1", "payload": "pay"}' $URL/agents/payer/inbox""")
    assert machine.shell(f"while kill -0 {pid} 2> /dev/null; do sleep 0.05; done").returncode == 0
    del machine.env["AGENTFS_FAULT"]
    machine.run("mount")
    rest = 'until curl -s -H "Authorization: Bearer $TOKEN" $URL/agents/payer/status | grep -q \'"queue_depth": 0\''
    assert machine.shell(f"{rest}; do sleep 0.1; done").returncode == 0
    status: dict[str, object] = json.loads(curl(machine, "$URL/agents/payer/status"))
    return status


def day(status: dict[str, object]) -> tuple[int, int]:
    """Reserved and spent today."""
    budget = status["budget"]["effects"]["day"]  # type: ignore[index]
    return budget["reserved_usd"], budget["spent_usd"]


@pytest.mark.parametrize("point", POINTS)
def test_a_provider_that_can_be_asked_charges_once(machine: Machine, bank: FakeBank, point: str) -> None:
    status = crashed(machine, bank, point, ", ask=ask")
    assert bank.requests == ["payer:bank:m1/1"] and bank.charges == {"payer:bank:m1/1": 30}
    assert day(status) == (0, 30)
    (reply,) = curl(machine, "$URL/agents/payer/outbox").splitlines()
    assert json.loads(reply)["payload"] == {"charged_usd": 30}
    machine.run("umount")
    machine.run("fsck")


@pytest.mark.parametrize("point", POINTS)
def test_a_provider_that_cannot_be_asked_is_never_called_again(machine: Machine, bank: FakeBank, point: str) -> None:
    """Before the receipt was stored nobody can tell: it counts as spent, and the message ends as a dead letter."""
    status = crashed(machine, bank, point, "")
    is_known = point == "effect.finished"
    assert len(bank.requests) == (0 if point == "effect.reserved" else 1)
    assert day(status) == (0, 30 if is_known else 50)
    assert curl(machine, "$URL/agents/payer/deadletter/count") == ("0\n" if is_known else "1\n")
    if not is_known:
        assert "unknown_outcome" in curl(machine, "$URL/agents/payer/deadletter/m1.json")
    machine.run("umount")
    machine.run("fsck")

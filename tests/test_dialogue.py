"""The dialogue of the README on a whole runtime: over the mount, curl and agentctl, and its errors in each tool."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from machine import Machine

FOLLOWS = "ls -l /proc/$tailing/fd | grep -q outbox && grep -qE '^(0|7|23|35|230|270|271) ' /proc/$tailing/syscall"
"""The tail has found the end of its file and waits for more: in read, poll, select or sleep."""

CURL = 'curl -sS -m 60 -H "Authorization: Bearer $TOKEN"'


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    machine = Machine(tmp_path_factory.mktemp("dialogue"))
    machine.run("mount", "--agent", "demo")
    yield machine
    machine.run("umount")
    assert machine.mounted() == 0


def out(machine: Machine, script: str, code: int = 0, timeout: float = 60) -> str:
    done = machine.shell(script, timeout)
    assert done.returncode == code, (script, done.returncode, done.stdout, done.stderr)
    return done.stdout


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def first(follower: str, word: str) -> str:
    """A script: the first line with *word* that *follower* prints, which is then ended."""
    return (
        f"exec 3< <({follower} 2> /dev/null); follower=$!; grep -m 1 {word} <&3; found=$?; kill $follower; exit $found"
    )


def test_dialogue_on_the_mount(machine: Machine) -> None:
    listing = out(machine, "ls $M/agents/demo").split()
    assert {"config", "ctl", "inbox", "kv", "logs", "ns", "outbox", "queue", "schedule", "status"} <= set(listing)
    tail = out(
        machine,
        f"""
        tail -n 0 -f $M/agents/demo/outbox > $AGENTFS_STATE/tail & tailing=$!
        until {FOLLOWS}; do sleep 0.05; done
        echo 'remind me in 2 seconds to drink water' > $M/agents/demo/inbox
        until [ $(grep -c water $AGENTFS_STATE/tail) = 2 ]; do sleep 0.1; done
        kill $tailing; cat $AGENTFS_STATE/tail
        """,
    )
    answer, reminder = lines(tail)
    assert answer["payload"] == "ok, in 2 seconds: drink water"
    assert reminder["payload"] == "reminder: drink water"
    assert reminder["to"] == "operator" and reminder["metadata"]["reply_to"] == answer["metadata"]["reply_to"]
    ticks = lines(out(machine, "cat $M/agents/demo/logs/ticks"))
    assert [t["outcome"] for t in ticks[-2:]] == ["ok", "ok"]
    status = json.loads(out(machine, "cat $M/agents/demo/status"))
    assert status["id"] == "demo" and status["queue_depth"] == 0
    out(machine, "echo tick > $M/agents/demo/ctl")
    assert json.loads(out(machine, "cat $M/agents/demo/logs/verify"))["ok"] is True


def test_dialogue_over_curl(machine: Machine) -> None:
    receipt = json.loads(out(machine, f"{CURL} -X POST --data-binary hello $URL/agents/demo/inbox"))
    follow = f"{CURL} -N '$URL/agents/demo/outbox?watch=1&since=0'".replace("'", '"')
    events = out(machine, first(follow, receipt["id"]))
    reply = json.loads(events.removeprefix("data: "))
    assert reply["metadata"]["reply_to"] == receipt["id"] and "hello" in reply["payload"]
    assert json.loads(out(machine, f"{CURL} $URL/agents/demo/status"))["id"] == "demo"
    assert out(machine, f"{CURL} -X POST -w '%{{http_code}}' $URL/agents/demo/tick") == "204"
    trace = out(machine, first(f'{CURL} -N "$URL/agents/demo/logs/trace?watch=1&since=0"', "tick_end"))
    assert json.loads(trace.removeprefix("data: "))["type"] == "tick_end"
    assert out(machine, "curl -sS $URL/healthz").strip() == "ok"


def test_dialogue_over_agentctl(machine: Machine) -> None:
    assert "demo" in out(machine, "agentctl list")
    out(machine, "agentctl create second")
    receipt = json.loads(out(machine, "agentctl send second hi"))
    assert receipt["to"] == "second"
    found = out(machine, first("agentctl logs second --follow --since 0", "tick_end"))
    assert '"ok"' in found
    assert json.loads(out(machine, "agentctl -o json status second"))["data"]["tick_count"] == 1
    out(machine, "agentctl tick second; agentctl ctl second pause; agentctl ctl second resume")
    out(machine, "agentctl write agents/second/kv/note 'some text'")
    assert out(machine, "agentctl read agents/second/kv/note") == "some text"
    assert "note" in out(machine, "agentctl ls agents/second/kv")
    assert out(machine, "agentctl token").strip() == machine.state.token.read_text().strip()
    assert machine.shell("agentctl delete second").returncode != 0
    out(machine, "agentctl delete second --force")
    assert "second" not in out(machine, "agentctl list")
    assert json.loads(out(machine, "agentctl -o json runtime"))["data"]["agents"] >= 1


ON_THE_MOUNT = {
    "echo '{bad' > $M/agents/demo/inbox": "Invalid argument",
    "echo jump > $M/agents/demo/ctl": "Invalid argument",
    "cat $M/agents/demo/nosuch": "No such file",
    "echo x > $M/agents/demo/status": "Permission denied",
    "head -c 20000000 /dev/zero | tr '\\0' x > $M/agents/demo/inbox": "File too large",
    "echo '{\"program\": 3}' > $M/agents/demo/config": "Invalid argument",
    "ln -s x $M/agents/demo/kv/link": "Operation not permitted",
    "mkdir $M/agents/demo/sub": "Permission denied",
    "rmdir $M/agents/demo": "not empty",
    "mkdir $M/agents/Bad_Name": "Invalid argument",
}


@pytest.mark.parametrize("script", ON_THE_MOUNT)
def test_errors_on_the_mount(machine: Machine, script: str) -> None:
    done = machine.shell(f"set -o pipefail; {script}")
    assert done.returncode != 0 and ON_THE_MOUNT[script] in done.stderr, done


OVER_HTTP = {
    "--data-binary '{bad' $URL/agents/demo/inbox": (400, "EINVAL"),
    "--data-binary jump $URL/agents/demo/ctl": (400, "EINVAL"),
    "$URL/agents/demo/nosuch": (404, "ENOENT"),
    "--path-as-is $URL/agents/demo/../demo/status": (400, "EINVAL"),
    "--path-as-is $URL/agents/demo/%2e%2e/status": (400, "EINVAL"),
    "$URL/agents/demo%2fstatus": (400, "EINVAL"),
    "-T $BIG -X POST $URL/agents/demo/inbox": (413, "EFBIG"),
    "-X PUT --data-binary x $URL/agents/demo/status": (403, "EACCES"),
    "-X DELETE $URL/agents/demo": (409, "ENOTEMPTY"),
    "'$URL/agents/demo/status?colour=red'": (400, "EINVAL"),
}


@pytest.mark.parametrize("words", OVER_HTTP)
def test_errors_over_http(machine: Machine, words: str, tmp_path: Path) -> None:
    words = words.replace("'$URL", '"$URL').replace("red'", 'red"')
    big = tmp_path / "big"
    big.write_bytes(b"x" * 20_000_000)
    text = out(machine, f"BIG={big}; {CURL} -w '\n%{{http_code}}' {words}")
    body, _, status = text.rpartition("\n")
    expected = next(v for k, v in OVER_HTTP.items() if k.replace("'$URL", '"$URL').replace("red'", 'red"') == words)
    assert (int(status), json.loads(body)["errno"]) == expected


def test_wrong_token(machine: Machine) -> None:
    wrong = 'curl -sS -H "Authorization: Bearer wrong" -w "%{http_code}" -o /dev/null $URL/agents'
    assert out(machine, wrong) == "401"
    done = machine.shell("agentctl --token wrong list")
    assert done.returncode == 4 and "EACCES" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "code", "name"),
    [
        ("send demo --json '{bad'", 6, "EINVAL"),
        ("ctl demo jump", 6, "EINVAL"),
        ("status nosuch", 3, "ENOENT"),
        ("read agents/../x", 6, "EINVAL"),
        ("create demo", 5, "EEXIST"),
    ],
)
def test_errors_in_agentctl(machine: Machine, words: str, code: int, name: str) -> None:
    done = machine.shell(f"agentctl {words}")
    assert done.returncode == code and name in done.stderr and done.stderr.count("\n") == 1, done


def test_a_full_inbox_refuses_at_open(machine: Machine) -> None:
    out(machine, "mkdir $M/agents/full; echo pause > $M/agents/full/ctl")
    out(machine, "echo '{\"max_depth\": 2}' > $M/agents/full/queue/overflow")
    out(machine, "echo one > $M/agents/full/inbox; echo two > $M/agents/full/inbox")
    done = machine.shell("echo three > $M/agents/full/inbox")
    assert done.returncode == 1 and "Resource temporarily unavailable" in done.stderr
    status = f"{CURL} -o /dev/null -D - --data-binary three $URL/agents/full/inbox"
    head = out(machine, status)
    assert " 429 " in head and "retry-after: 1" in head.lower()
    done = machine.shell("agentctl send full three")
    assert done.returncode == 7 and "EAGAIN" in done.stderr
    assert len(out(machine, "ls $M/agents/full/queue").split()) == 3


def test_walks_end_and_change_nothing(machine: Machine, tmp_path: Path) -> None:
    out(machine, "mkdir -p $M/agents/kept; echo value > $M/agents/kept/kv/x; echo pause > $M/agents/kept/ctl")
    out(machine, "echo hello > $M/agents/kept/inbox; sleep 0.3")
    before = out(machine, "cd $M/agents/kept; find . -type f | sort; cat kv/x config inbox status")
    walks = ["grep -r x . > {t}/grep", "find . > {t}/find", "tar c . > {t}/tar", "cp -r . {t}/cp"]
    machine.shell("cd $M; " + "; ".join(walks).replace("{t}", str(tmp_path)), timeout=60)
    assert (tmp_path / "cp/agents/kept/kv/x").read_text() == "value\n"
    done = machine.shell("rm -rf $M/agents/kept")
    assert done.returncode == 1 and "Operation not permitted" in done.stderr
    assert out(machine, "cd $M/agents/kept; find . -type f | sort; cat kv/x config inbox status") == before
    out(machine, "rm $M/agents/kept/kv/x")
    assert out(machine, "ls $M/agents/kept/kv") == ""


def test_view_is_the_agent_s_own(machine: Machine) -> None:
    assert "Permission denied" in machine.shell("echo '{}' > $M/views/demo/config").stderr
    assert machine.shell("echo terminate > $M/views/demo/ctl").returncode == 1
    assert machine.shell("ls $M/views/demo/agents").returncode != 0
    out(machine, "echo mine > $M/views/demo/kv/own")
    assert out(machine, "cat $M/agents/demo/kv/own") == "mine\n"

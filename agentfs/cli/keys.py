"""The commands about keys: their seed, made with words that are shown once or recovered from them; keys from elsewhere.

No key passes through a runtime, and none is ever given out.
"""

from __future__ import annotations

import base64
import errno
import sys
from collections.abc import Callable

from agentfs.cli import process
from agentfs.cli.start import order
from agentfs.config import Config
from agentfs.errors import error
from agentfs.providers.keys.wire import Source
from agentfs.state import StateDir
from agentfs.types import check_name

_STDIN_MAX = 4096
_HEX = 64


def new(config: Config, phrase: int, say: Callable[[str], None]) -> None:
    """Make the sealed file and say its words, this once. EEXIST when there is one, EINVAL for keys in memory.

    *phrase* is a descriptor with the passphrase, or -1.
    """
    from agentfs.providers.keys import seed  # here: most commands work without what keys need

    words = seed.fresh_words(256)
    _create(config, phrase, words)
    say(words)


def recover(config: Config, phrase: int) -> None:
    """Make the sealed file from the words on standard input. EEXIST when there is one, EINVAL for the words."""
    _create(config, phrase, sys.stdin.read(_STDIN_MAX))


def adopt(config: Config, phrase: int, agent: str) -> str:
    """Rotate *agent* to the secret key on standard input, and its public key.

    EINVAL for what is no key, ENOENT without a sealed file or the agent, ENOTCONN without a runtime, EEXIST when the
    agent has that key.
    """
    from agentfs.providers.keys.opening import opened  # here: most commands work without what keys need

    home = StateDir(config.state)
    check_name(agent, f"agents/{agent}")
    secret = _secret(sys.stdin.read(_STDIN_MAX).strip())
    running = home.running()
    if running is None or process.holder(home.lock) != running.pid:
        raise error(errno.ENOTCONN, str(home.path), "no runtime has this state directory; start it first")
    if config.keys == "memory":
        raise error(errno.EINVAL, "keys", "memory: only a runtime itself has such keys")
    key = opened(_source(config, phrase, may_make=False)).adopt(secret)
    sealed = base64.b64encode(key.imported).decode()
    order(home, running, f"agents/{agent}/identity/ctl", f"import {key.pubkey.hex()} {sealed}\n".encode())
    return key.pubkey.hex()


def _secret(text: str) -> bytes:
    """The secret key that *text* holds. EINVAL, which repeats nothing of it."""
    from agentfs.bech32 import secret_of
    from agentfs.providers.keys import curve

    if text.lower().startswith("nsec1"):
        secret = secret_of(text)
    else:
        try:
            secret = bytes.fromhex(text) if len(text) == _HEX else b""
        except ValueError:
            secret = b""
    if not curve.is_secret(secret):
        raise error(errno.EINVAL, "standard input", "key: want an nsec, or a secret key as 64 hex digits")
    return secret


def _create(config: Config, phrase: int, words: str) -> None:
    from agentfs.providers.keys.opening import create

    StateDir(config.state).prepare()
    create(_source(config, phrase), words)


def _source(config: Config, phrase: int, *, may_make: bool = True) -> Source:
    home = StateDir(config.state)
    return Source(config.keys, str(home.keys), str(home.keys_key), phrase, may_make)

"""The commands about the seed of all keys: made with words that are shown once, or recovered from them.

No runtime is needed, and none may be asked: keys are never given out.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable

from agentfs.config import PASSPHRASE, Config
from agentfs.errors import error
from agentfs.state import StateDir

_STDIN_MAX = 4096


def new(config: Config, say: Callable[[str], None]) -> None:
    """Make the sealed file and say its words, this once. EEXIST when there is one."""
    from agentfs.providers.keys import seed  # here: most commands work without what keys need

    words = seed.fresh_words(256)
    _create(config, words)
    say(words)


def recover(config: Config) -> None:
    """Make the sealed file from the words on standard input. EEXIST when there is one, EINVAL for the words."""
    _create(config, sys.stdin.read(_STDIN_MAX))


def _create(config: Config, words: str) -> None:
    from agentfs.providers.keys.keeper import create, opener

    home = StateDir(config.state)
    home.prepare()
    if home.keys.exists():
        raise error(errno.EEXIST, str(home.keys), "it holds the keys of every agent; move it away first")
    create(home.keys, opener(home.keys_key, os.environ.get(PASSPHRASE, "")), words)

"""The operating system's keyring as the place of the passphrase that opens a sealed file.

It must not be imported where another process is to hold the keys, and keeps nothing itself.
"""

from __future__ import annotations

import errno
import secrets
from typing import Final

from agentfs.errors import error
from agentfs.providers.keys.secret import Secret

SERVICE: Final = "agentfs"
PHRASE_BYTES: Final = 32  # of randomness


def phrase(account: str, *, may_make: bool) -> Secret:
    """The passphrase that the keyring holds for *account*; where it has none and *may_make*, a random one it then has.

    May block while the keyring asks its user. ENOTCONN when there is no keyring, ENOENT when it has no passphrase.
    """
    try:
        import keyring  # an extra: only this way of keeping keys needs it
    except ImportError as exc:
        raise _away("the package is missing, agentfs[keyring] installs it") from exc
    try:
        held = keyring.get_password(SERVICE, account)
        if held is None and may_make:
            held = secrets.token_urlsafe(PHRASE_BYTES)
            keyring.set_password(SERVICE, account, held)
    except Exception as exc:  # noqa: BLE001  # each backend has errors of its own, whose text could tell anything
        raise _away(type(exc).__name__) from None
    if held is None:
        raise error(errno.ENOENT, account, "keys: the keyring has no passphrase for this directory's sealed file")
    return Secret(held)


def _away(why: str) -> OSError:
    return error(errno.ENOTCONN, detail=f"keys: keyring: no keyring of the system answers ({why})")

"""Which handle a node is opened with: the one place that maps kinds of file to their handles."""

from __future__ import annotations

import errno

from agentfs.errors import error
from agentfs.record import Follow
from agentfs.service import FileHandle
from agentfs.tree.documents import CallHandle, CtlHandle, DocumentHandle, QueueHandle
from agentfs.tree.handles import DataHandle, FollowHandle, LogHandle, Opening
from agentfs.tree.held import HeldHandle
from agentfs.tree.nodes import Call, Ctl, Data, File, Leaf, Queue, Stream
from agentfs.types import Mode


async def open_leaf(node: Leaf, opening: Opening, *, is_new: bool) -> FileHandle:
    """A handle on *node*, which the caller found open to ``opening.mode``. *is_new*: created, nothing to read yet."""
    at, is_read = opening.at, Mode.READ in opening.mode
    match node:
        case Stream():
            log = await node.log(at)
            heads = await log.heads()
            return LogHandle(log, heads[-1].generation if heads else 1, opening)
        case Data():
            return DataHandle(node, b"" if is_new else await node.read(at), opening)
        case Ctl():
            return CtlHandle(node, opening)
        case Call():
            confirm = None if node.harmless else at.want.confirm
            return CallHandle(node, opening) if confirm is None else HeldHandle(node, confirm, opening)
        case Queue():
            return QueueHandle(node, await node.sink(at) if Mode.WRITE in opening.mode else None, opening)
        case File():
            text = await node.read(at) if node.read and is_read and not is_new else None
            return DocumentHandle(node, text, opening)
    raise TypeError(f"{type(node).__name__} is not a kind of file")


async def open_twin(node: Stream, cursor: str, opening: Opening) -> FileHandle:
    """A handle on ``X@<cursor>``, ``X@follow`` or, for the cursor ``.1``, on the generation before. ENOENT, EINVAL."""
    log = await node.log(opening.at)
    if cursor == ".1":
        heads = await log.heads()
        if len(heads) < 2:
            raise error(errno.ENOENT, f"{opening.at.path}.1")
        return LogHandle(log, heads[0].generation, opening)
    return FollowHandle(await Follow.start(log, None if cursor == "follow" else cursor), opening)

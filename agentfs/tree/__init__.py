"""The author's kit: six kinds of file, each implemented once, and `Tree`, a `FileService` from a table of them."""

from agentfs.tree.handles import Errors
from agentfs.tree.nodes import At, Call, Ctl, Data, Dir, Entry, File, Graft, Info, Node, Queue, Sink, Stream
from agentfs.tree.tree import Tree

__all__ = [
    "At", "Call", "Ctl", "Data", "Dir", "Entry", "Errors", "File", "Graft", "Info", "Node", "Queue", "Sink", "Stream",
    "Tree",
]  # fmt: skip

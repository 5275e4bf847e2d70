"""The ``agentfs`` command: makes, starts, stops and checks a runtime on this machine.

It holds no capability of an agent; those are files, reached through a face.
"""

from agentfs.cli.command import main

__all__ = ["main"]

"""Engines of sandboxes: one outside system a file, all behind `agentfs.containers.port`."""

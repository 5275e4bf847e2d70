"""Providers: one outside system a file, each behind a port of `agentfs.ports`."""

"""Servers of models behind `agentfs.compute.port.ComputeProvider`, one kind of server a module."""

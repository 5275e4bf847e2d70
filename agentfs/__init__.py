"""agentfs: every capability of an AI agent is a file in that agent's own namespace."""

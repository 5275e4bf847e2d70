"""Agents, ticks, mail, alarms and delivery: what makes agents live, over ports only."""

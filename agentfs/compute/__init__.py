"""What is asked of a model and what comes back, as values, and the decisions about it: policy, prices, route, breaker.

Pure: no clock, no store and no network; what runs jobs is `agentfs.engine.jobs`.
"""

"""Conformance suites: what every service, face, store and backend must pass, run in ten lines each."""

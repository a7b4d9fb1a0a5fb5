"""Stages: one file a verb, `run(config) -> Report`."""

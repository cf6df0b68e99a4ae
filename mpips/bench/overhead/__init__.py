"""The cost of a run apart from its requests: idle ranks, tracing and recording."""

"""The cost of a run besides its requests: idle ranks, tracing and recording."""

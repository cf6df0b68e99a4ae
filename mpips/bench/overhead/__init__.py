"""What a run costs beyond its requests: idle ranks, tracing and recording."""

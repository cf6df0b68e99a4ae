"""The worker: executes calls of the scheduler and pushes and pulls ranges of vectors (paper, sections 3.1 to 3.3)."""

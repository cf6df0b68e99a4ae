"""A server's memory: segments of vectors, the key index, updates, rounds of pushes (paper, sections 3.3 and 3.4)."""

"""The worker: executes the scheduler's calls, and pushes and pulls keys and ranges of vectors.

Implements sections 3.1 to 3.3 and the worker side of Algorithm 1 of the paper. May import the root modules, process/ to
cluster/, tracing/, config/ and server/.
"""

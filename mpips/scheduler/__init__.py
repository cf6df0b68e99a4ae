"""The scheduler: calls workers and servers, assigns data, keeps the journal, coordinates checkpoints.

Implements sections 3 and 3.4 (the task scheduler and its tasks) and 4.6 (workers) of the paper. May import the root
modules, process/ to cluster/, tracing/, config/, server/ and worker/.
"""

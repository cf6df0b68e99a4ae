"""The scheduler: calls workers and servers, assigns data, keeps the journal, coordinates checkpoints.

Implements sections 3.2 (task scheduler) and 4.3 (succession of the scheduler) of the paper. May import the root
modules, process/ to cluster/, tracing/, config/, server/ and worker/.
"""

"""The server: shards of vectors, replication after aggregation, and transfer of shards to new members.

Implements sections 4.4 (replication) and 4.5 (migration) and the server side of Algorithm 1 of the paper. May import
the root modules, process/ to cluster/, tracing/ and config/.
"""

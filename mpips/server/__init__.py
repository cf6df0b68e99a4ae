"""The server: shards, replication after aggregation, and moving shards to new members (paper, sections 4.2 and 4.3)."""

"""What grows with the number of ranks and with the load; servers that join and leave; replication."""

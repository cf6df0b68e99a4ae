"""Costs as functions of the number of ranks and of the load; servers that join and leave; replication."""

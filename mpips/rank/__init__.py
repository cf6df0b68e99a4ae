"""A run as one rank lives it: start, roles, the leader, and the simulation of a whole cluster in one process."""

"""Cluster membership: roles, the key ring, views, heartbeats, failure injection, and the node of a rank.

Implements sections 4.3 (the ring) and 4.5 (server management) of the paper and the roles of section 3. May import the
root modules, process/, files/, rundir/, storage/, transport/, filters/, tasks/ and checkpoint/.
"""

"""Cluster membership: roles, the key ring, views, heartbeats, failure injection, and the node of a rank.

Implements section 4.3 of the paper (server management) and the roles of section 3. May import the root modules,
process/, files/, rundir/, storage/, transport/, filters/, tasks/ and checkpoint/.
"""

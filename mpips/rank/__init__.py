"""The main program of a rank: start-up, role loop, leader, shutdown; and the simulation of a cluster in one process.

Implements the life of a node in the paper's architecture (section 3) and its failures (sections 4.4 to 4.6). May import
all packages but report/, planning/, jobs/, bench/ and cli/.
"""

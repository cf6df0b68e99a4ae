"""Who is there: roles, the key ring, views, membership, heartbeats, and the node of a rank (paper, section 4.3)."""

"""Membership: which ranks are in the run, and which one leads (paper, section 4.5: server manager).

Detection of lost ranks, agreement on views, and the succession of the leader.
"""

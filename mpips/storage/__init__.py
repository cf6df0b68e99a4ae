"""A server's storage: segments of vectors, the key index, updates, aggregation and the vector clock (paper, sections
3.1 to 3.4 and 4.1).

Imports what comes before it (errors to rundir); knows no messages.
"""

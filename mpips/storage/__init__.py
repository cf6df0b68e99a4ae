"""A server's storage: segments of vectors, the key index, updates, aggregation and the vector clock (paper, sections
3.1 to 3.4 and 4.1).

May import: the root modules, process/, files/, jit/ and rundir/. Does not depend on transport/.
"""

"""Messages between ranks (paper, section 4.2): their format, key caching, the van over MPI and its in-memory twin, and
the compiled fast paths of clients and servers.

Imports errors, ranges, process, files, jit, rundir, storage and data, and no module that depends on tasks or roles.
"""

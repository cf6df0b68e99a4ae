"""Messages between ranks (paper, section 4.2): their format, key caching, and the vans that transport them: over MPI
(`mpi`) and in memory. `fastpath` handles plain requests in compiled code.

Imports errors, ranges, process, files, jit, rundir, storage and data, and no module that depends on tasks or roles.
"""

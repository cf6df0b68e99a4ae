"""Plain requests in compiled code, without Python objects: at the client, and at a server for single pushes and pulls,
rounds and their copies (paper, sections 3.2, 3.4, 4.2 and 4.4).

`table`, `rounds` and `unacknowledged` are the arrays that kernels and Python share; the other modules are kernels.

Imports what the package above may, of it the formats of messages and the key cache, and of `mpips.transport.mpi` the
kernels and the ABI of MPI. Nothing here initializes MPI; the vans call it.
"""

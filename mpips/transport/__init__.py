"""Messages between ranks: format, key caching, the MPI van, its in-memory twin, the compiled fast path (section
5.1).
"""

"""The van over MPI: sends and receives, also in compiled code without Python objects, and detects deaths.

Nothing else in mpips communicates between two ranks by MPI. Importing `van` initializes MPI. What compiled code does
with requests is in `mpips.transport.fastpath`.
"""

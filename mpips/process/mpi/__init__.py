"""Faults of MPI libraries that mpips avoids before they are initialized."""

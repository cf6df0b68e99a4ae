"""Runs and trained models from Python, without MPI in the calling process.

May import: all that stands above it, up to rank/ and report/; nothing of a rank's part of a run is used.
"""

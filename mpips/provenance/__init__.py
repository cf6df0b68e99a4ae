"""Provenance of a run (code, inputs, machine), and the first failure of a run that failed.

Not in the paper. May import the root modules, process/ to cluster/, tracing/ and config/.
"""

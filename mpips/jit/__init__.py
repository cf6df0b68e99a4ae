"""Compiled kernels: how numba builds them, where they are cached, and what is checked before they run."""

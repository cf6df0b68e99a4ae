"""Compilation of kernels by numba: only here, and where kernels are compiled, is numba imported."""

"""Compiled kernels: how numba compiles them, where they are cached, and which checks they need.

Independent of the paper; imports modules at the root, process and files.
"""

"""Untrusted files: safe opening, atomic replacement, and readers of JSON, HDF5 and npz that check every bound.

Independent of the paper; imports modules at the root and process.
"""

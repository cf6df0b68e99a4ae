"""Rows larger than memory: arrays in unnamed files of a node-local disk, of which a limited part is in memory.

`disk_file` is one such file, `page_clock` decides which of its pages go, and `store` keeps a server's limit.
"""

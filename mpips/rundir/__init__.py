"""The folder of a run: its files, its claim, logs, the progress table, and orders to a running job.

Independent of the paper; imports modules at the root, process, files and jit.
"""

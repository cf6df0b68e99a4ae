"""Asynchronous tasks with execute-after-finished dependencies, and exactly-once requests (paper, section 3.4).

Imports what comes before it (errors to filters); knows no roles.
"""

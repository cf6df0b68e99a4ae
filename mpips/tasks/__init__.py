"""Asynchronous tasks with execute-after-finished dependencies, and exactly-once requests (paper, section 3.4).

May import: the root modules, process/, files/, jit/, rundir/, storage/, data/, transport/ and filters/. Does not depend
on roles (cluster/).
"""

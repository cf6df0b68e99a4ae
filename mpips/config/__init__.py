"""The job file, and the program that it names.

The program is the user-defined part of the paper's Algorithm 1 (tasks of workers, section 3.4; server functions,
section 3.3). May import the root modules, process/ to cluster/, and tracing/.
"""

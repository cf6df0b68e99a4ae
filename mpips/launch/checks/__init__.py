"""What is found out about a machine or a cluster before a run: its launchers, the wire between its nodes, its files.

`mpips doctor` and `mpips validate` use it.
"""

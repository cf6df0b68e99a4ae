"""This process: its streams, folders, host, signals and interpreter. Knows nothing of the parameter server."""

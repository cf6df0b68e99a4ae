"""This process: its streams, folders, host, signals and interpreter.

Independent of the paper and of the parameter server; imports only modules at the root.
"""

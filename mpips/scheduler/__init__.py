"""The scheduler: drives workers and servers, hands out data, keeps the journal, coordinates checkpoints (section
3.2).
"""

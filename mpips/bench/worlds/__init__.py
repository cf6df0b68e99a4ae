"""Small worlds: all orders of events of a few ranks that run the real code."""

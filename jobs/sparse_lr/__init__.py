"""Sparse logistic regression: the delayed block proximal gradient method, and online learners."""

"""Prediction of a job's cost on other machines: the cost model, and failures.

Not in the paper; it predicts the scaling of section 5. May import the root modules only.
"""

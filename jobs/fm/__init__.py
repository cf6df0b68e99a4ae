"""Factorization machines: linear weights by FTRL, and factors by AdaGrad, of features that were seen often enough."""

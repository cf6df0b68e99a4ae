"""Estimators of scikit-learn that are fitted by `mpips.run`; `pip install 'mpips[estimators]'`."""

from mpips.estimators.factorization_machine import FactorizationMachine
from mpips.estimators.latent_dirichlet_allocation import LatentDirichletAllocation
from mpips.estimators.sparse_logistic_regression import SparseLogisticRegression

__all__ = ["FactorizationMachine", "LatentDirichletAllocation", "SparseLogisticRegression"]

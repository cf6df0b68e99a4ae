"""Single-process solvers of L1 logistic regression, each as far as it is installed: one fit of each.

All get the same examples, CSR with f8 values, and run on one thread: those of scikit-learn (liblinear), skglm (working
sets; Bertrand et al. 2022), celer (dual extrapolation; Massias et al. 2020) and snapml (IBM Snap ML).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple


class Solver(NamedTuple):
    """A solver: the package that has it, and its model for the weight of the l1 norm.

    make(l1, examples, tolerance, iterations): a model with `fit`, and the weights in `coef_` afterwards.
    """

    package: str
    make: Callable[[float, int, float, int], Any]


def _liblinear(l1: float, examples: int, tolerance: float, iterations: int) -> Any:
    import sklearn
    from sklearn.linear_model import LogisticRegression

    version = tuple(int(part) for part in sklearn.__version__.split(".")[:2])
    penalty = {"l1_ratio": 1.0} if version >= (1, 8) else {"penalty": "l1"}
    return LogisticRegression(
        solver="liblinear", C=1.0 / l1, fit_intercept=False, tol=tolerance, max_iter=iterations,
        random_state=0, **penalty,
    )  # fmt: skip


def _skglm(l1: float, examples: int, tolerance: float, iterations: int) -> Any:
    from skglm import SparseLogisticRegression

    # Its loss is the mean of the examples' losses.
    return SparseLogisticRegression(
        alpha=l1 / examples, tol=tolerance, max_iter=iterations, fit_intercept=False
    )


def _celer(l1: float, examples: int, tolerance: float, iterations: int) -> Any:
    from celer import LogisticRegression

    return LogisticRegression(C=1.0 / l1, tol=tolerance, max_iter=iterations, fit_intercept=False)


def _snapml(l1: float, examples: int, tolerance: float, iterations: int) -> Any:
    from snapml import LogisticRegression

    return LogisticRegression(
        penalty="l1", regularizer=l1, tol=tolerance, max_iter=iterations, fit_intercept=False, dual=False,
        n_jobs=1,
    )  # fmt: skip


SOLVERS = {
    "liblinear": Solver("sklearn", _liblinear),
    "skglm": Solver("skglm", _skglm),
    "celer": Solver("celer", _celer),
    "snapml": Solver("snapml", _snapml),
}


def installed() -> list[str]:
    """List the solvers whose packages are installed."""
    return [name for name, each in SOLVERS.items() if importlib.util.find_spec(each.package) is not None]

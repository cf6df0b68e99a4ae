"""L1 logistic regression by the job `sparse_lr`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import check_is_fitted, validate_data

from mpips.client.loading import load_model
from mpips.client.run import Run
from mpips.data import write
from mpips.estimators.fitting import fit_folder, run_job
from mpips.estimators.two_classes import TwoClassEstimator, finite, two_classes, with_ones


class SparseLogisticRegression(TwoClassEstimator):
    """L1 logistic regression of two classes: minimises sum_i log(1 + exp(-y_i x_i.w)) + l1 |w|_1 by `sparse_lr`.

    `fit` starts servers and workers as `mpips.run` does. With Open MPI it survives the loss of a worker, and with
    several servers, which have copies, that of a server.

    Args:
        l1: the weight of the l1 norm.
        fit_intercept: add a constant feature of 1, whose weight is penalised like the others, as by liblinear.
        algorithm: `darlin`, to the optimum; or `ftrl`, `adagrad` or `sgd`, online.
        servers: ranks that hold weights.
        workers: ranks that have examples; no more than there are examples.
        spares: ranks that replace dead ones.
        settings: further keys of the job, as `set` of `mpips.run`: {"sparse_lr.epsilon": 1e-5}.
        folder: where the data, the run and its checkpoints are kept, in a folder fit-N for each fit, on a file system
            of all hosts; None: a temporary folder, which is removed.
        launcher: as of `mpips.run`; or `twin`: all ranks in this process, without MPI, for tests and small data.

    Attributes:
        coef_: f8[1, features].
        intercept_: f8[1]; 0 without `fit_intercept`.
        classes_: the two labels, in ascending order.
        n_iter_: passes over the data.
        objective_: the minimum that was reached; None online with several passes.

    >>> X, y = np.array([[0.0, 2.0], [1.0, 0.0], [0.0, 3.0], [2.0, 0.0]]), ["b", "a", "b", "a"]
    >>> model = SparseLogisticRegression(l1=0.1, workers=1, launcher="twin").fit(X, y)
    >>> model.predict([[0.0, 1.0], [1.0, 0.0]]).tolist(), model.coef_.shape
    (['b', 'a'], (1, 2))
    >>> scores, shares = model.decision_function(X), model.predict_proba(X)
    >>> (scores > 0).tolist(), shares.shape
    ([True, False, True, False], (4, 2))
    """

    def __init__(
        self,
        l1: float = 1.0,
        *,
        fit_intercept: bool = True,
        algorithm: str = "darlin",
        servers: int = 1,
        workers: int = 2,
        spares: int = 0,
        settings: dict[str, Any] | None = None,
        folder: str | os.PathLike[str] | None = None,
        launcher: str = "auto",
    ) -> None:
        self.l1, self.fit_intercept, self.algorithm = l1, fit_intercept, algorithm
        self.servers, self.workers, self.spares = servers, workers, spares
        self.settings, self.folder, self.launcher = settings, folder, launcher

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the weights to X, [n, features], dense or sparse, and labels y, [n], of two classes.

        Raises:
            ValueError: the data or a parameter are wrong; an `mpips.InputError` is one.
            mpips.RunFailed: the run has failed.
            mpips.RunInterrupted: Ctrl-C was pressed.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        self.classes_, labels = two_classes(y)
        with fit_folder(self.folder) as folder:
            done = self._run(folder, X, labels)
            keys, weights = load_model(done).vectors()["w"]
            self.n_iter_ = int(done.metrics.get("passes", 1))
            self.objective_ = done.metrics.get("objective")
        whole = np.zeros(X.shape[1] + 1)
        whole[keys.astype(np.int64)] = weights[:, 0]
        self.coef_, self.intercept_ = whole[None, :-1].copy(), whole[-1:].copy()
        return self

    def _run(self, folder: Path, X: Any, labels: NDArray[np.int64]) -> Run:
        write(folder / "train.h5", with_ones(X, self.fit_intercept), labels, force=True)
        settings = {"l1": float(self.l1), "algorithm": self.algorithm}
        return run_job(
            self, folder, X.shape[0], {"program": "sparse_lr"}, {"train": "train.h5"}, {"sparse_lr": settings}
        )

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return x.w of each row of X, f8[n]: above 0 means the second class."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return finite(safe_sparse_dot(X, self.coef_[0]) + self.intercept_[0])

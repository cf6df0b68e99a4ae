"""A factorization machine by the job `fm`."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import check_is_fitted, validate_data

from mpips.client.loading import load_model
from mpips.data import Examples, write
from mpips.data.csr import write_csr
from mpips.data.kernels import MOST_FIELDS
from mpips.estimators.fitting import fit_folder, run_job
from mpips.estimators.two_classes import TwoClassEstimator, finite, two_classes, with_ones


class FactorizationMachine(TwoClassEstimator):
    """A factorization machine for two classes: linear weights, and k factors of each feature, by the job `fm`.

    Each column is divided by its largest absolute value while the machine learns. `coef_` and `factors_` are of the
    columns as they are. With `fields` each row is divided by its length instead, and they are of such rows.

    Args:
        factors: the number of factors, k.
        fields: of a field-aware machine the field of each column, whole numbers from 0, [features]; the constant
            feature has one of its own. None: fields are not told apart.
        passes: passes over the examples.
        batch: examples per mini-batch.
        admit: a feature has factors once so many entries of examples had it; 0: from the first.
        fit_intercept: add a constant feature of 1, which has a weight and factors like any.
        random_state: the seed of the first factors; None: 0.
        servers: ranks that hold weights and factors.
        workers: ranks that have examples; no more than there are examples.
        spares: ranks that replace dead ones.
        settings: further keys of the job, as `set` of `mpips.run`: {"fm.factor_alpha": 0.1}.
        folder: as of `SparseLogisticRegression`.
        launcher: as of `SparseLogisticRegression`.

    Attributes:
        coef_: f8[1, features], the linear weights.
        intercept_: f8[1], that of the constant feature; 0 without `fit_intercept`.
        factors_: f8[features (+ 1 with `fit_intercept`), k], with `fields` [..., fields, k]; 0 of features without
            factors.
        classes_: the two labels, in ascending order.
        n_iter_: passes over the data.

    Only the product of two columns tells the classes apart, which is beyond a linear model:

    >>> X = np.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]] * 10)
    >>> model = FactorizationMachine(2, passes=20, batch=4, workers=1, launcher="twin").fit(X, X[:, 0] * X[:, 1])
    >>> model.predict(X[:4]).tolist()
    [1.0, -1.0, -1.0, 1.0]
    """

    def __init__(
        self,
        factors: int = 16,
        *,
        fields: Any = None,
        passes: int = 10,
        batch: int = 100,
        admit: int = 0,
        fit_intercept: bool = True,
        random_state: int | None = None,
        servers: int = 1,
        workers: int = 2,
        spares: int = 0,
        settings: dict[str, Any] | None = None,
        folder: str | os.PathLike[str] | None = None,
        launcher: str = "auto",
    ) -> None:
        self.factors, self.fields = factors, fields
        self.passes, self.batch, self.admit = passes, batch, admit
        self.fit_intercept, self.random_state = fit_intercept, random_state
        self.servers, self.workers, self.spares = servers, workers, spares
        self.settings, self.folder, self.launcher = settings, folder, launcher

    def fit(self, X: Any, y: Any) -> Self:
        """Fit weights and factors to X, [n, features], dense or sparse, and labels y, [n], of two classes.

        Raises:
            ValueError: the data or a parameter are wrong; an `mpips.InputError` is one.
            mpips.RunFailed: the run has failed.
            mpips.RunInterrupted: Ctrl-C was pressed.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        self.classes_, labels = two_classes(y)
        own = {"factors": self.factors, "passes": self.passes, "batch": self.batch, "admit": self.admit}
        if self.fields is not None:
            return self._fit_with_fields(X, labels, own)
        with fit_folder(self.folder) as folder:
            largest = abs(X).max(axis=0)
            scale = np.append(largest.toarray().ravel() if sparse.issparse(largest) else largest, 1.0)
            scale[scale == 0.0] = 1.0
            scaled = X @ sparse.diags(1.0 / scale[:-1]) if sparse.issparse(X) else X / scale[:-1]
            write(folder / "train.h5", with_ones(scaled, self.fit_intercept), labels, force=True)
            head = {"program": "fm", "seed": self.random_state or 0}
            done = run_job(self, folder, X.shape[0], head, {"train": "train.h5"}, {"fm": own})
            held, self.n_iter_ = load_model(done).vectors(), int(done.metrics["passes"])
        # Of `settings`, perhaps.
        k = held["v"][1].shape[1]
        weights, found = np.zeros((len(scale), 1)), np.zeros((len(scale), k))
        for (keys, rows), whole in ((held["w"], weights), (held["v"], found)):
            whole[keys.astype(np.int64)] = rows
            whole /= scale[:, None]
        self._keep(weights[:, 0], found)
        return self

    def _fit_with_fields(self, X: Any, labels: NDArray[np.int64], own: dict[str, Any]) -> Self:
        own["fields"] = True
        examples = self._examples(X, labels)
        with fit_folder(self.folder) as folder:
            write_csr(str(folder / "train.h5"), [examples])
            head = {"program": "fm", "seed": self.random_state or 0}
            done = run_job(self, folder, X.shape[0], head, {"train": "train.h5"}, {"fm": own})
            self._model, self.n_iter_ = load_model(done), int(done.metrics["passes"])
        held = self._model.vectors()
        weights = np.zeros(X.shape[1] + 1)
        weights[held["w"][0].astype(np.int64)] = held["w"][1][:, 0]
        keys, rows = held["v"]
        # Of `settings`, perhaps.
        k = self._model.form.factors  # type: ignore[attr-defined]
        found = np.zeros((X.shape[1] + 1, rows.shape[1] // k, k))
        found[keys.astype(np.int64)] = rows.reshape(len(keys), -1, k)
        self._keep(weights, found)
        return self

    def _keep(self, weights: NDArray[np.float64], found: NDArray[np.float64]) -> None:
        """Keep what was learned, of the constant feature last."""
        self.coef_, self.intercept_ = weights[None, :-1].copy(), weights[-1:].copy()
        self.factors_ = found if self.fit_intercept else found[:-1].copy()

    def _examples(self, X: Any, labels: NDArray[np.int64]) -> Examples:
        """Return the rows of X as examples with fields."""
        fields = np.asarray(self.fields)
        if fields.shape != (X.shape[1],) or fields.dtype.kind not in "iu":
            raise ValueError(
                f"fields must be {X.shape[1]} whole numbers from 0, one for each column, not {fields.dtype} of shape"
                f" {fields.shape}"
            )
        # With one of the constant feature.
        largest = int(fields.max()) + 1
        if fields.min() < 0 or largest >= MOST_FIELDS:
            raise ValueError(
                f"fields must be from 0 to {MOST_FIELDS - 2}, and are {fields.min()} to {fields.max()}"
            )
        rows = sparse.csr_array(with_ones(X, self.fit_intercept))
        rows.sum_duplicates()
        of = np.append(fields.astype(np.int32), np.int32(largest))
        values = rows.data.astype(np.float32)
        keys, indptr = rows.indices.astype(np.uint64), rows.indptr.astype(np.int64)
        return Examples(labels.astype(np.float32), indptr, keys, values, of[rows.indices])

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the score of each row of X, f8[n]: above 0 means the second class."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        if self.fields is not None:
            examples = self._examples(X, np.ones(X.shape[0], np.int64))
            found: NDArray[np.float64] = self._model.decision_function(examples)
            return found
        X, v = with_ones(X, self.fit_intercept), self.factors_
        # The sum over pairs, by columns of factors (Rendle 2010, equation 5).
        pairs = safe_sparse_dot(X, v) ** 2 - safe_sparse_dot(
            X.multiply(X) if sparse.issparse(X) else X * X, v * v
        )
        linear = np.append(self.coef_[0], self.intercept_)[: len(v)]
        return finite(safe_sparse_dot(X, linear) + 0.5 * pairs.sum(axis=1))

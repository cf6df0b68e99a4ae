"""What estimators of two classes share: their labels, predictions by a score, and a constant feature."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils.multiclass import check_classification_targets


class TwoClassEstimator(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """An estimator of two classes by a score of each row, dense or sparse; `fit` sets `classes_`."""

    classes_: NDArray[Any]

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn wants to know of it."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_class = False
        return tags

    @abstractmethod
    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return the score of each row of X, f8[n]: above 0 means the second class."""

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the more probable class of each row of X, [n]."""
        scores = self.decision_function(X)
        found: NDArray[Any] = self.classes_[(scores > 0.0).astype(np.int64)]
        return found

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probabilities of both classes, f8[n, 2]."""
        half = 0.5 * np.tanh(0.5 * self.decision_function(X))
        return np.column_stack([0.5 - half, 0.5 + half])


def finite(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return scores; ValueError unless all are finite, since others are of no class."""
    if not np.isfinite(scores).all():
        raise ValueError("the score of a row is not finite: scale the columns of X to about 1")
    return scores


def two_classes(y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the two labels, and -1 or +1 of each example."""
    check_classification_targets(y)
    classes, labels = np.unique(y, return_inverse=True)
    if len(classes) != 2:
        found = f"{len(classes)} class{'es' * (len(classes) > 1)}"
        raise ValueError(f"Only binary classification is supported; y has {found}")
    return classes, 2 * labels - 1


def with_ones(X: Any, wanted: bool) -> Any:
    """Return X with a last column of ones, if that is wanted."""
    if not wanted:
        return X
    ones = np.ones((X.shape[0], 1))
    return sparse.hstack([X, ones], format="csr") if sparse.issparse(X) else np.hstack([X, ones])

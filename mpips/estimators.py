"""Estimators of scikit-learn that are fitted by `mpips.run`; `pip install 'mpips[estimators]'`."""

from __future__ import annotations

import io
import itertools
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, check_non_negative, validate_data

from mpips.client.given_job import overrides, plain
from mpips.client.loading import load_model
from mpips.client.run import Run, run
from mpips.config.job_file import load
from mpips.config.program import load_program
from mpips.config.toml_text import write_toml
from mpips.data import Examples, write
from mpips.data.csr import write_csr
from mpips.errors import InputError, RemoteError
from mpips.rank.twin import run_twin
from mpips.rundir import claim
from mpips.rundir.folder import RunFolder

TWIN = "twin"


@contextmanager
def _folder(named: str | os.PathLike[str] | None) -> Iterator[Path]:
    """Return a new folder for one fit; a temporary one is removed. Searches fit copies of an estimator at once."""
    if named is None:
        with tempfile.TemporaryDirectory(prefix="mpips-fit-") as temporary:
            yield Path(temporary)
        return
    Path(named).mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        folder = Path(named).absolute() / f"fit-{number}"
        with suppress(FileExistsError):
            folder.mkdir()
            break
    yield folder


def _fit(
    estimator: Any,
    folder: Path,
    examples: int,
    head: dict[str, Any],
    data: dict[str, Any],
    settings: dict[str, dict[str, Any]],
) -> Run:
    """Run a job in a new folder that holds its data; `head`, `data` and `settings` are tables of the job."""
    workers = min(estimator.workers, examples)
    tables = {
        "job": {"base": str(folder), **head},
        "layout": {"servers": estimator.servers, "workers": workers, "spares": estimator.spares},
        "checkpoint": {"directory": str(folder / "checkpoints")},
        "data": data,
        **settings,
    }
    job = folder / "job.toml"
    job.write_text(write_toml(plain(tables, "")))
    runs = folder / "run"
    if estimator.launcher != TWIN:
        return run(job, set=estimator.settings, run_dir=runs, launcher=estimator.launcher)
    loaded, claimed = load(job, overrides(estimator.settings or {})), RunFolder.claim(runs)
    try:
        run_twin(loaded, load_program(loaded.program, loaded.base), claimed, None, io.StringIO())
    except RemoteError as error:
        if error.is_input:
            raise InputError(error.text) from None
        raise
    finally:
        claim.release(claimed.path)
    return Run(runs)


class SparseLogisticRegression(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
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

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn wants to know of it."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Fit the weights to X, [n, features], dense or sparse, and labels y, [n], of two classes.

        Raises:
            ValueError: the data or a parameter are wrong; an `mpips.InputError` is one.
            mpips.RunFailed: the run has failed.
            mpips.RunInterrupted: Ctrl-C was pressed.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        self.classes_, labels = _two_classes(y)
        with _folder(self.folder) as folder:
            done = self._run(folder, X, labels)
            keys, weights = load_model(done).vectors()["w"]
            self.n_iter_ = int(done.metrics.get("passes", 1))
            self.objective_ = done.metrics.get("objective")
        whole = np.zeros(X.shape[1] + 1)
        whole[keys.astype(np.int64)] = weights[:, 0]
        self.coef_, self.intercept_ = whole[None, :-1].copy(), whole[-1:].copy()
        return self

    def _run(self, folder: Path, X: Any, labels: NDArray[np.int64]) -> Run:
        write(folder / "train.h5", _with_ones(X, self.fit_intercept), labels, force=True)
        settings = {"l1": float(self.l1), "algorithm": self.algorithm}
        return _fit(
            self, folder, X.shape[0], {"program": "sparse_lr"}, {"train": "train.h5"}, {"sparse_lr": settings}
        )

    def decision_function(self, X: Any) -> NDArray[np.float64]:
        """Return x.w of each row of X, f8[n]: above 0 means the second class."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=False)
        return _finite(safe_sparse_dot(X, self.coef_[0]) + self.intercept_[0])

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the more probable class of each row of X, [n]."""
        scores = self.decision_function(X)
        found: NDArray[Any] = self.classes_[(scores > 0.0).astype(np.int64)]
        return found

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probabilities of both classes, f8[n, 2]."""
        half = 0.5 * np.tanh(0.5 * self.decision_function(X))
        return np.column_stack([0.5 - half, 0.5 + half])


class FactorizationMachine(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
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

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn wants to know of it."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        tags.classifier_tags.multi_class = False
        return tags

    def fit(self, X: Any, y: Any) -> Self:
        """Fit weights and factors to X, [n, features], dense or sparse, and labels y, [n], of two classes.

        Raises:
            ValueError: the data or a parameter are wrong; an `mpips.InputError` is one.
            mpips.RunFailed: the run has failed.
            mpips.RunInterrupted: Ctrl-C was pressed.
        """
        X, y = validate_data(self, X, y, accept_sparse="csr", dtype=np.float64)
        self.classes_, labels = _two_classes(y)
        own = {"factors": self.factors, "passes": self.passes, "batch": self.batch, "admit": self.admit}
        if self.fields is not None:
            return self._fit_with_fields(X, labels, own)
        with _folder(self.folder) as folder:
            largest = abs(X).max(axis=0)
            scale = np.append(largest.toarray().ravel() if sparse.issparse(largest) else largest, 1.0)
            scale[scale == 0.0] = 1.0
            scaled = X @ sparse.diags(1.0 / scale[:-1]) if sparse.issparse(X) else X / scale[:-1]
            write(folder / "train.h5", _with_ones(scaled, self.fit_intercept), labels, force=True)
            head = {"program": "fm", "seed": self.random_state or 0}
            done = _fit(self, folder, X.shape[0], head, {"train": "train.h5"}, {"fm": own})
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
        with _folder(self.folder) as folder:
            write_csr(str(folder / "train.h5"), [examples])
            head = {"program": "fm", "seed": self.random_state or 0}
            done = _fit(self, folder, X.shape[0], head, {"train": "train.h5"}, {"fm": own})
            self._model, self.n_iter_ = load_model(done), int(done.metrics["passes"])
        held = self._model.vectors()
        weights = np.zeros(X.shape[1] + 1)
        weights[held["w"][0].astype(np.int64)] = held["w"][1][:, 0]
        keys, rows = held["v"]
        found = np.zeros((X.shape[1] + 1, rows.shape[1] // self.factors, self.factors))
        found[keys.astype(np.int64)] = rows.reshape(len(keys), -1, self.factors)
        self._keep(weights, found)
        return self

    def _keep(self, weights: NDArray[np.float64], found: NDArray[np.float64]) -> None:
        """Keep what was learned, of the constant feature last."""
        self.coef_, self.intercept_ = weights[None, :-1].copy(), weights[-1:].copy()
        self.factors_ = found if self.fit_intercept else found[:-1].copy()

    def _examples(self, X: Any, labels: NDArray[np.int64]) -> Examples:
        """Return the rows of X as examples with fields."""
        fields = np.asarray(self.fields)
        if fields.shape != (X.shape[1],) or fields.dtype.kind not in "iu" or fields.min() < 0:
            raise ValueError(
                f"fields must be {X.shape[1]} whole numbers from 0, one for each column, not {fields.dtype} of shape"
                f" {fields.shape}"
            )
        rows = sparse.csr_array(_with_ones(X, self.fit_intercept))
        rows.sum_duplicates()
        of = np.append(fields, fields.max() + 1).astype(np.int32)
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
        X, v = _with_ones(X, self.fit_intercept), self.factors_
        # The sum over pairs, by columns of factors (Rendle 2010, equation 5).
        pairs = safe_sparse_dot(X, v) ** 2 - safe_sparse_dot(
            X.multiply(X) if sparse.issparse(X) else X * X, v * v
        )
        linear = np.append(self.coef_[0], self.intercept_)[: len(v)]
        return _finite(safe_sparse_dot(X, linear) + 0.5 * pairs.sum(axis=1))

    def predict(self, X: Any) -> NDArray[Any]:
        """Return the more probable class of each row of X, [n]."""
        scores = self.decision_function(X)
        found: NDArray[Any] = self.classes_[(scores > 0.0).astype(np.int64)]
        return found

    def predict_proba(self, X: Any) -> NDArray[np.float64]:
        """Return the probabilities of both classes, f8[n, 2]."""
        half = 0.5 * np.tanh(0.5 * self.decision_function(X))
        return np.column_stack([0.5 - half, 0.5 + half])


def _finite(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return scores; ValueError unless all are finite, since others are of no class."""
    if not np.isfinite(scores).all():
        raise ValueError("the score of a row is not finite: scale the columns of X to about 1")
    return scores


def _two_classes(y: Any) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Return the two labels, and -1 or +1 of each example."""
    check_classification_targets(y)
    classes, labels = np.unique(y, return_inverse=True)
    if len(classes) != 2:
        found = f"{len(classes)} class{'es' * (len(classes) > 1)}"
        raise ValueError(f"Only binary classification is supported; y has {found}")
    return classes, 2 * labels - 1


def _with_ones(X: Any, wanted: bool) -> Any:
    """Return X with a last column of ones, if that is wanted."""
    if not wanted:
        return X
    ones = np.ones((X.shape[0], 1))
    return sparse.hstack([X, ones], format="csr") if sparse.issparse(X) else np.hstack([X, ones])


class LatentDirichletAllocation(TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """Topics of documents, by Gibbs sampling: the job `lda`.

    Args:
        n_components: the number of topics, K.
        doc_topic_prior: alpha, the prior of each topic of a document.
        topic_word_prior: beta, the prior of each word of a topic.
        sweeps: draws of a topic for each token.
        random_state: the seed; None: 0.
        servers: ranks that hold counts.
        workers: ranks that have documents; no more than there are documents.
        spares: ranks that replace dead ones.
        settings: further keys of the job, as `set` of `mpips.run`: {"lda.learn_alpha": "asymmetric"}.
        folder: as of `SparseLogisticRegression`.
        launcher: as of `SparseLogisticRegression`.

    Attributes:
        components_: f8[K, words], the counts of words in topics, and the prior.
        n_iter_: the number of sweeps.
        log_likelihood_: the joint log-likelihood of words and topics at the end.

    >>> counts = np.array([[30, 20, 0, 0], [0, 0, 40, 20], [20, 40, 0, 0], [0, 0, 30, 30]])
    >>> model = LatentDirichletAllocation(2, sweeps=20, workers=1, launcher="twin", random_state=0).fit(counts)
    >>> model.transform(counts).argmax(axis=1).tolist() in ([0, 1, 0, 1], [1, 0, 1, 0])
    True
    """

    def __init__(
        self,
        n_components: int = 10,
        *,
        doc_topic_prior: float = 0.1,
        topic_word_prior: float = 0.01,
        sweeps: int = 200,
        random_state: int | None = None,
        servers: int = 1,
        workers: int = 2,
        spares: int = 0,
        settings: dict[str, Any] | None = None,
        folder: str | os.PathLike[str] | None = None,
        launcher: str = "auto",
    ) -> None:
        self.n_components, self.doc_topic_prior, self.topic_word_prior = (
            n_components,
            doc_topic_prior,
            topic_word_prior,
        )
        self.sweeps, self.random_state = sweeps, random_state
        self.servers, self.workers, self.spares = servers, workers, spares
        self.settings, self.folder, self.launcher = settings, folder, launcher

    def __sklearn_tags__(self) -> Any:
        """Return what scikit-learn wants to know of it."""
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = tags.input_tags.positive_only = True
        return tags

    def fit(self, X: Any, y: Any = None) -> Self:
        """Find the topics of documents, by their counts of words X, [n, words]: whole numbers, dense or sparse.

        Raises:
            ValueError: the counts or a parameter are wrong; an `mpips.InputError` is one.
            mpips.RunFailed: the run has failed.
            mpips.RunInterrupted: Ctrl-C was pressed.
        """
        rows = self._counts(X, reset=True)
        if not rows.data.any():
            raise ValueError("no document has a word: all counts are 0")
        with _folder(self.folder) as folder:
            with (folder / "train.ldac").open("w") as file:
                for row in range(rows.shape[0]):
                    cells = slice(rows.indptr[row], rows.indptr[row + 1])
                    pairs = zip(rows.indices[cells].tolist(), rows.data[cells].tolist(), strict=True)
                    words = [f"{word}:{times}" for word, times in pairs]
                    file.write(" ".join([str(len(words)), *words]) + "\n")
            (folder / "words").write_text("".join(f"w{word}\n" for word in range(rows.shape[1])))
            own = {"topics": self.n_components, "alpha": float(self.doc_topic_prior), "sweeps": self.sweeps}
            own |= {"beta": float(self.topic_word_prior)}
            head = {"program": "lda", "seed": self.random_state or 0}
            data = {"train": "train.ldac", "vocab": "words"}
            done = _fit(self, folder, rows.shape[0], head, data, {"lda": own})
            self._model = load_model(done)
            self.n_iter_, self.log_likelihood_ = done.metrics["sweeps"], done.metrics["log_likelihood"]
        counts = self._model.topics.rows(np.arange(rows.shape[1], dtype=np.int32))  # type: ignore[attr-defined]
        self.components_ = counts.T + self.topic_word_prior
        return self

    def transform(self, X: Any) -> NDArray[np.float64]:
        """Return the shares of topics in documents, f8[n, K], by their counts of words X, [n, words]."""
        check_is_fitted(self)
        return self._model.transform(self._counts(X, reset=False))

    def _counts(self, X: Any, reset: bool) -> Any:
        X = validate_data(self, X, accept_sparse="csr", dtype=np.float64, reset=reset)
        check_non_negative(X, "LatentDirichletAllocation")
        # A copy: what follows changes it.
        rows = sparse.csr_array(X, copy=True)
        rows.sum_duplicates()
        rows.eliminate_zeros()
        return self._whole(rows)

    def _whole(self, rows: Any) -> Any:
        whole = rows.astype(np.int64)
        if not np.array_equal(whole.data, rows.data):
            raise ValueError("counts of words must be whole numbers, not weights such as of TF-IDF")
        return whole

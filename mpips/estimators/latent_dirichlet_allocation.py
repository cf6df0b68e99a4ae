"""Topics of documents by the job `lda`."""

from __future__ import annotations

import os
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted, check_non_negative, validate_data

from mpips.client.loading import load_model
from mpips.estimators.fitting import fit_folder, run_job


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
        with fit_folder(self.folder) as folder:
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
            done = run_job(self, folder, rows.shape[0], head, data, {"lda": own})
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

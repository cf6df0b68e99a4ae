"""A trained model in its file, `model.h5`.

attributes    program = "lda", beta, vocabulary (V)
alpha         f8[K]
n_k           i8[K]: tokens of each topic
indptr        i8[V+1]: word w has the entries indptr[w] to indptr[w+1] - 1 of
topics        i4[nnz], ascending within a word, and
counts        i4[nnz]: n_wk > 0
words         V strings, if they are known
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import InputError, rows_flaw
from mpips.jobs.lda.topics import Top, no_words, offer

PROGRAM = "lda"
FILE = "model.h5"
SHOWN = 10
"""Top words of a topic."""
CELLS = 1 << 26
"""Approximate number of counts in memory at a time during inference."""


class TrainedTopics(NamedTuple):
    """A trained model: `model.h5` in memory."""

    alpha: NDArray[np.float64]
    beta: float
    n_k: NDArray[np.int64]
    vocabulary: int
    words: Sequence[str] | None
    indptr: NDArray[np.int64]
    topics: NDArray[np.int32]
    counts: NDArray[np.int32]

    def rows(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """Return n_wk of some words: i4[n, K]."""
        sizes = self.indptr[ids + 1] - self.indptr[ids]
        starts = np.cumsum(sizes) - sizes
        entries = np.arange(int(sizes.sum())) + np.repeat(self.indptr[ids] - starts, sizes)
        rows = np.zeros((len(ids), len(self.alpha)), np.int32)
        rows[np.repeat(np.arange(len(ids)), sizes), self.topics[entries]] = self.counts[entries]
        return rows

    def top(self, n: int = SHOWN) -> Top:
        """Return each topic's n top words."""
        top = no_words(len(self.alpha), n)
        step = max(1, CELLS // len(self.alpha))
        for begin in range(0, self.vocabulary, step):
            ids = np.arange(begin, min(begin + step, self.vocabulary), dtype=np.int32)
            offer(top, ids, self.rows(ids))
        return top


def export_model(
    path: Path,
    pieces: Iterable[tuple[NDArray[Any], NDArray[Any]]],
    alpha: NDArray[np.float64],
    beta: float,
    vocabulary: int,
    words: Sequence[str] | None,
    n: int = SHOWN,
) -> tuple[Top, NDArray[np.int64]]:
    """Write `model.h5`, atomically; return the topics' top words and n_k.

    Args:
        path: the file.
        pieces: (word ids [m], n_wk [m, K]) in ascending order of the ids, with or without words that have no
            tokens, as `Cluster.export` yields; memory is bounded by a piece.
        alpha: f8[K].
        beta: the words' prior.
        vocabulary: V.
        words: the vocabulary's words, or None.
        n: the number of top words.

    Raises:
        OSError: the file cannot be written.
    """
    import h5py

    from mpips import hdf5

    topics = len(alpha)
    top, n_k, sizes = no_words(topics, n), np.zeros(topics, np.int64), np.zeros(vocabulary, np.int64)
    with hdf5.writing(path) as file:
        file.attrs.update({"program": PROGRAM, "beta": beta, "vocabulary": vocabulary})
        store = {"maxshape": (None,), "chunks": (1 << 16,), "compression": "gzip", "compression_opts": 1}
        entries = [file.create_dataset(name, (0,), np.int32, **store) for name in ("topics", "counts")]
        for keys, values in pieces:
            ids, rows = keys.astype(np.int32), np.ascontiguousarray(values, np.int32)
            offer(top, ids, rows)
            n_k += rows.sum(axis=0, dtype=np.int64)
            word, topic = np.nonzero(rows)
            sizes[ids] = np.bincount(word, minlength=len(ids))
            for data, part in zip(entries, (topic.astype(np.int32), rows[word, topic]), strict=True):
                data.resize(len(data) + len(part), axis=0)
                data[len(data) - len(part) :] = part
        file["alpha"], file["n_k"] = np.asarray(alpha, np.float64), n_k
        file["indptr"] = np.concatenate([[0], np.cumsum(sizes)])
        if words is not None:
            file.create_dataset("words", data=list(words), dtype=h5py.string_dtype())
    return top, n_k


def read_model(path: Path) -> TrainedTopics:
    """Read a model from its file or from its run's folder.

    Raises:
        InputError: the file is missing, or is not a model.
    """
    from mpips import hdf5

    file_name = path / FILE if path.is_dir() else path
    if path.is_dir() and not file_name.exists():
        raise InputError(f"{path}: holds no {FILE}; a run writes it when it completes")
    try:
        with hdf5.reading(file_name, follow=file_name == path) as file:
            alpha, n_k, indptr, topics, counts = (
                hdf5.array(file, name) for name in ("alpha", "n_k", "indptr", "topics", "counts")
            )
            words = hdf5.texts(file, "words") if "words" in file else None
            model = TrainedTopics(
                alpha,
                float(file.attrs["beta"]),
                n_k,
                int(file.attrs["vocabulary"]),
                words,
                indptr,
                topics,
                counts,
            )
    except FileNotFoundError:
        raise InputError(f"{file_name}: no such file") from None
    except (OSError, RuntimeError, KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InputError(f"{file_name}: is not a model of lda: {' '.join(why.split())}") from None
    flaw = flaw_of(model)
    if flaw:
        raise InputError(f"{file_name}: is damaged: {flaw}; copy it again")
    return model._replace(
        alpha=np.ascontiguousarray(alpha, np.float64),
        n_k=np.ascontiguousarray(n_k, np.int64),
        indptr=np.ascontiguousarray(indptr, np.int64),
        topics=np.ascontiguousarray(topics, np.int32),
        counts=np.ascontiguousarray(counts, np.int32),
    )


def flaw_of(model: TrainedTopics) -> str:
    """Return why a model from a file is invalid, so that no kernel gets it; "" if it is valid."""
    alpha, beta, n_k, vocabulary, words, indptr, topics, counts = model
    arrays = [np.asarray(each) for each in (alpha, n_k, indptr, topics, counts)]
    if [each.ndim for each in arrays] != [1] * 5 or [each.dtype.kind for each in arrays] != list("fiiii"):
        return "its arrays have wrong types or dimensions"
    if not (len(alpha) and len(n_k) == len(alpha) and len(counts) == len(topics)):
        return "the sizes of its arrays are inconsistent"
    if not (np.isfinite(alpha).all() and alpha.min() > 0.0 and math.isfinite(beta) and beta > 0.0):
        return "alpha and beta must be above 0"
    if words is not None and len(words) != vocabulary:
        return f"it has {len(words)} words, and a vocabulary of {vocabulary}"
    if n_k.min() < 0 or (len(counts) and not 0 < counts.min() <= counts.max() < 2**31):
        return "it has a count below 0"
    return rows_flaw(indptr, topics, vocabulary, len(alpha))

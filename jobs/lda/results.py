"""The results of a run: the model, its topics as table and picture, their coherence, perplexity of test documents."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import Answer, Cluster, InputError, KeyRange, replacing
from mpips.jobs.lda import evaluate
from mpips.jobs.lda.corpus import LeftOut, look_at, open_corpus
from mpips.jobs.lda.evaluate import Phi, completion, distinct
from mpips.jobs.lda.model import CELLS, FILE, export_model
from mpips.jobs.lda.sweeps import PIECE, Sweeper
from mpips.jobs.lda.topics import Top, cooccurrence, draw, table, umass
from mpips.jobs.lda.training import Training

TABLE, PICTURE = "topics.txt", "topics.svg"
"""The files of the topics' top words."""
SHOWN = 30
"""Largest number of topics whose table is printed; the file has all."""

# --- The scheduler ---------------------------------------------------------------------------------------------------


def check_test_data(cluster: Cluster) -> None:
    """Let the workers check the first test documents, so that an error comes before training."""
    cluster.workers.call("check_test_data", each=_parts(cluster))


def _parts(cluster: Cluster) -> list[dict[str, int]]:
    return [{"part": part, "of": len(cluster.workers)} for part in range(len(cluster.workers))]


class Results:
    """The outputs of a trained run, step by step (`mpips.scheduler.finishing`); the model comes first."""

    def __init__(self, cluster: Cluster, training: Training) -> None:
        self.cluster, self.training = cluster, training
        self.folder = cluster.folder.path
        self.top: tuple[Top, NDArray[np.int64]] | None = None
        self.words: list[str] | None = None

    def model(self) -> dict[str, Any]:
        """Write the model."""
        training, vocabulary = self.training, self.training.collection.vocabulary
        self.words = training.words()
        pieces = _rows(self.cluster, training.settings.topics, vocabulary)
        self.top = export_model(
            self.folder / FILE, pieces, training.alpha, training.beta, vocabulary, self.words
        )
        return {"model": str(self.folder / FILE)}

    def perplexity(self) -> dict[str, Any]:
        """Return the perplexity of the test documents, None without any."""
        return {"perplexity": _perplexity(self.cluster, self.training)}

    def topics(self) -> dict[str, Any]:
        """Write the topics as a table and a picture, and print them; add their coherence to the metrics."""
        if self.top is None:
            # Writing the model has failed.
            return {}
        cluster, (top, n_k) = self.cluster, self.top
        coherence = umass(_cooccurrence(cluster, top.ids))
        cluster.metrics["coherence"] = float(coherence.mean())
        text = table(top, n_k, self.words, coherence)
        if len(n_k) <= SHOWN:
            cluster.say(text)
        with replacing(self.folder / TABLE, "w") as file:
            file.write(text + "\n")
        try:
            draw(self.folder / PICTURE, top, n_k, self.words)
        except (InputError, OSError) as error:
            cluster.say(f"no picture of the topics: {error}")
        return {}

    def summary(self) -> None:
        """Print the main metrics."""
        metrics = self.cluster.metrics
        text = f"log likelihood {metrics['log_likelihood']:,.0f}, {metrics['log_likelihood_per_token']:.4f} a token"
        if "coherence" in metrics:
            text += f"; mean coherence {metrics['coherence']:.2f}"
        if metrics.get("perplexity") is not None:
            text += f"; perplexity of the test documents {metrics['perplexity']:.1f}"
        self.cluster.say(f"{text}\ntopics: {self.folder / TABLE}")


def _perplexity(cluster: Cluster, training: Training) -> float | None:
    if not cluster.job.data.test:
        return None
    args = {"scratch": str(cluster.folder.path / "documents")}
    scored = cluster.workers.call("score", args, each=_parts(cluster), values=training.priors())
    if left_out := LeftOut(*scored[0]["left_out"]).said(scored[0]["all"]):
        cluster.say(f"test documents: {left_out}")
    return evaluate.perplexity(
        math.fsum(one["log_p"] for one in scored), sum(one["tokens"] for one in scored)
    )


def _cooccurrence(cluster: Cluster, ids: NDArray[np.int32]) -> NDArray[np.int64]:
    topics, n = ids.shape
    return cluster.workers.total(cluster.workers.start("cooccurrence", values=ids)).reshape(topics, n, n)


def _rows(cluster: Cluster, topics: int, vocabulary: int) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Yield all counts n_wk, read by the workers in turn: (words, rows [m, K]) in pieces of bounded size."""
    step = max(1, PIECE // topics)
    for turn, first in enumerate(range(0, vocabulary, step)):
        asked = {"first": first, "last": min(first + step, vocabulary)}
        only = [turn % len(cluster.workers)]
        ((keys, counts),) = cluster.workers.gather("counts", asked, only=only)
        rows = np.zeros((asked["last"] - first, topics), np.int32)
        rows.reshape(-1)[keys.astype(np.int64)] = counts[:, 0]
        yield np.arange(first, asked["last"]), rows


# --- The worker ------------------------------------------------------------------------------------------------------


class Evaluator(Sweeper):
    """The part of a worker that measures the quality of topics."""

    def check_test_data(self, part: int, of: int) -> None:
        """Check the first test documents of one part of the files."""
        data, files = self.data, [Path(name) for name in self.data.test[part::of]]
        if files:
            look_at(files, Path(data.vocab) if data.vocab else None, Path(data.train[0]))

    def words(self) -> dict[str, Any]:
        """Return the vocabulary's words, if they are known."""
        words = self.documents.any.words
        return {"words": None if words is None else list(words)}

    def counts(self, first: int, last: int) -> Answer:
        """Return the counts of words first .. last - 1 that are not 0, i4[n, 1], by (w - first) K + k."""
        topics = self.settings.topics
        pull = self.context.vectors["words"].pull(KeyRange(first * topics, last * topics))
        rows = pull.result().reshape(-1)
        (found,) = np.nonzero(rows)
        return Answer(keys=found.astype(np.uint64), values=rows[found][:, None])

    def score(self, part: int, of: int, scratch: str, values: NDArray[Any]) -> dict[str, Any]:
        """Score one part of the test documents by completing them."""
        prior = self._prior(values)
        topics = prior.topics
        known = self.documents.any.words
        vocab = self.vocabulary if known is None else known
        n_k = self.context.vectors["topics"].pull(KeyRange(0, topics)).result().reshape(-1)
        log_p, tokens = [0.0], 0
        with open_corpus(
            [Path(name) for name in self.data.test], vocab, part, of, Path(scratch),
            max(1000, CELLS // topics), self.context.polling, self.files.check,
        ) as corpus:  # fmt: skip
            for b in self.context.polling(range(corpus.blocks)):
                ids, block = distinct(corpus.load(b))
                phi = Phi(self._rows_of(ids, topics), n_k, prior.alpha, prior.beta, self.vocabulary)
                with self.context.working():
                    scored, of_tokens = completion(block, corpus.documents(b), phi, self.context.job.seed)
                log_p.append(scored)
                tokens += of_tokens
            met = {"left_out": corpus.left_out, "all": corpus.all_tokens}
        return {"log_p": math.fsum(log_p), "tokens": tokens, **met}

    def _rows_of(self, ids: NDArray[np.int32], topics: int) -> NDArray[np.int32]:
        """Pull n_wk of some words, i4[n, K]: range by range, since most words are among them."""
        found, step = [np.empty((0, topics), np.int32)], max(1, PIECE // topics)
        for first in range(0, self.vocabulary, step):
            last = min(first + step, self.vocabulary)
            mine = ids[(ids >= first) & (ids < last)]
            if len(mine):
                pull = self.context.vectors["words"].pull(KeyRange(first * topics, last * topics))
                found.append(pull.result().reshape(-1, topics)[mine - first])
        return np.concatenate(found)

    def cooccurrence(self, values: NDArray[Any]) -> Answer:
        """Count the documents that have two of a topic's top words, values: i4[K, n]; as rows i8[K, n n]."""
        ids = np.ascontiguousarray(values, np.int32)
        topics, n = ids.shape
        counts = np.zeros((topics, n, n), np.int64)
        for group in self.context.polling(range(len(self.documents.groups))):
            with self.context.working():
                counts += cooccurrence(self.documents.load(group)[0], ids, self.vocabulary)
        return Answer(values=counts.reshape(topics, n * n))

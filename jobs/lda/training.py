"""The scheduler's side: sweeps, estimation of the priors between them, and recounting after the loss of a worker.

    scheduler                               worker r                              server
    for each sweep:                         sweep over its documents, in          add changes
        let all workers sweep                   steps (`sweeps`)
        ask for the sums of the counts                                            tally
        learn alpha and beta, if wanted

Between two steps, the counts on the servers are those of the topics of all tokens. When a worker is lost in a step they
are not, and all counts are computed again: the workers that now have its documents draw topics for their tokens by the
present counts; the counts are set to 0; each worker pushes the counts of its own tokens.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import (
    COUNT,
    NUMBER,
    Cluster,
    Each,
    InputError,
    ProtocolError,
    Task,
    VectorSpec,
    Workload,
    progress,
    regroup,
    retry_on_loss,
    schema_error,
)
from mpips.data import unusual_files
from mpips.jobs.lda import counts
from mpips.jobs.lda.corpus import LeftOut
from mpips.jobs.lda.documents import Assignment
from mpips.jobs.lda.evaluate import topic_norm
from mpips.jobs.lda.settings import Settings
from mpips.jobs.lda.sweeps import word_cuts

COLUMNS = (
    progress.Column("sweep", "sweep", 6),
    progress.Column("seconds", "seconds", 8, progress.seconds),
    progress.Column("log_likelihood", "log likelihood", 14, progress.significant(8)),
    progress.Column("log_likelihood_per_token", "a token", 9, progress.significant(5)),
    progress.Column("tokens/s", "tokens/s", 9, progress.si),
    progress.Column("waiting", "waiting", 11, progress.shares),
    progress.Column("sent", "sent", 9, progress.bytes_si),
)
LARGE = 1 << 26
"""Number of counts above which their memory is printed before it is allocated: 256 MiB."""
BURN_IN = 10
"""Number of sweeps before priors are learned."""

SCHEMA = {"sweeps": COUNT, "round": COUNT, "alpha": Each(NUMBER), "beta": NUMBER, "likelihood": NUMBER}
"""The entries of a checkpoint's state."""


class Collection(NamedTuple):
    """The totals of the documents."""

    documents: int
    tokens: int
    vocabulary: int


class Training:
    """The training of a run; its state is the number of sweeps and rounds, and the priors."""

    def __init__(self, cluster: Cluster, settings: Settings) -> None:
        self.cluster, self.settings = cluster, settings
        self.assignment = Assignment(cluster)
        self.alpha = np.full(settings.topics, settings.alpha)
        self.beta = settings.beta
        self.sweeps = self.round = 0
        self.groups, self.cuts = 0, [0]
        self.likelihood = math.nan
        self.seen: dict[int, float] = {}
        """The likelihood after each sweep since this start in which it was evaluated."""
        self.now: dict[str, Any] = {}

    def load(self) -> None:
        """Let the workers read the documents."""
        job = self.cluster.job
        if empty := self.cluster.decide(lambda: unusual_files(job.data, str(job.base))):
            self.cluster.say(empty)
        facts = retry_on_loss(self.cluster, self._load)
        self.collection = Collection(*(facts[0][name] for name in Collection._fields))
        seen = {tuple(each[name] for name in Collection._fields) for each in facts}
        if len(seen) > 1:
            raise InputError(f"[data] train: workers read different documents: {sorted(seen)}")
        shape = {"topics": self.settings.topics, "sampler": self.settings.sampler}
        self.cluster.facts |= shape | self.collection._asdict()
        self.cluster.say(
            f"{self.collection.documents:,} documents, {self.collection.tokens:,} tokens, "
            f"{self.collection.vocabulary:,} words"
        )
        left_out = LeftOut(*facts[0]["left_out"])
        if self.cluster.job.data.on_error == "skip":
            self.cluster.say('lda does not skip invalid lines: [data] on_error = "skip" has no effect')
        cells = self.collection.vocabulary * self.settings.topics
        if cells >= LARGE:
            servers = len(self.cluster.servers)
            self.cluster.say(
                f"counts of words in topics take {progress.bytes_si(4 * cells)}, over {servers} servers"
            )
        if line := left_out.said(self.collection.tokens):
            self.cluster.say(line)
            self.cluster.event("left_out", **left_out._asdict())

    def _load(self) -> list[dict[str, Any]]:
        facts = self.assignment.load()
        self.groups = max(each["groups"] for each in facts)
        workers = self.cluster.workers
        frequencies = workers.total(workers.start("frequencies"))[:, 0]
        self.cuts = word_cuts(frequencies, self.settings.topics, len(workers))
        return facts

    def run(self) -> dict[str, Any]:
        """Do all sweeps; return the metrics."""
        cluster, table = self.cluster, self.cluster.table(COLUMNS)
        retry_on_loss(cluster, self.begin, self._load)
        stop, before = self.sweeps >= self.settings.sweeps, self.sweeps
        while not stop:
            if (later := cluster.compact(self._restart_state)) is not None:
                self._continue_from(later)
            retry_on_loss(cluster, self.sweep, self.recover)
            self._show(table)
            stop = self.sweeps >= self.settings.sweeps
            if cluster.due(self.sweeps):
                retry_on_loss(cluster, self.save, self.recover)
                stop = cluster.stopping() or stop
            if not stop and cluster.renewed():
                regroup(cluster)
                retry_on_loss(cluster, self.recover, self.recover)
        table.close()
        tokens, trained = self.collection.tokens, max(cluster.trained, 1e-9)
        return {
            "log_likelihood": self.likelihood,
            "log_likelihood_per_token": self.likelihood / tokens,
            "tokens": tokens,
            "tokens_per_second": tokens * (self.sweeps - before) / trained,
            "sweeps": self.sweeps,
            "gain_per_sweep": self.gain(),
        }

    def save(self) -> None:
        """Begin a checkpoint."""
        self.cluster.checkpoint(self.sweeps, self._state())

    def gain(self) -> float | None:
        """Return the mean gain per sweep of the log-likelihood per token, over the last tenth of the sweeps, or None.

        About 0: more sweeps would hardly help.
        """
        late = sorted(sweep for sweep in self.seen if sweep >= 0.9 * self.sweeps)
        if len(late) < 2:
            return None
        return (self.seen[late[-1]] - self.seen[late[0]]) / (late[-1] - late[0]) / self.collection.tokens

    def begin(self) -> None:
        """Create the vectors, or restore a checkpoint."""
        cluster, topics = self.cluster, self.settings.topics
        # Discard the counts of an attempt in which a worker was lost.
        cluster.vectors.clear()
        state = cluster.restore(self._unfit)
        if state is None:
            together = cluster.job.consistency.is_sequential
            extent = self.collection.vocabulary * topics
            cluster.create_vector(VectorSpec("words", "int32", extent=extent, dense=True, aggregate=together))
            cluster.create_vector(
                VectorSpec("topics", "int64", extent=topics, dense=True, aggregate=together)
            )
            return
        self._take_state(state)
        # They may be as many, and hold other parts: of a run that has lost some of its workers.
        if not state["same_workers"] or not all(cluster.workers.call("restored")):
            self.recount()

    def sweep(self) -> None:
        """Draw a topic for each token; learn the priors; check the counts.

        The first worker initializes the topics alone: otherwise each worker would form topics of its own.
        """
        settings, workers = self.settings, self.cluster.workers
        learn = settings.learn_alpha != "fixed" and self.sweeps >= BURN_IN
        if self.sweeps == 0 and len(workers) > 1:
            self._sweep(initializing=True).result()
        task = self._sweep(learn=learn)
        replies = task.result()
        cells, totals = self.check()
        last = self.sweeps + 1 >= settings.sweeps
        if last or (self.sweeps + 1) % settings.evaluate_every == 0:
            self.likelihood = (
                math.fsum(reply.meta["likelihood"] for reply in replies)
                + counts.words_term(cells, self.beta)
                + topic_norm(totals, self.beta, self.collection.vocabulary)
            )
            self.seen[self.sweeps + 1] = self.likelihood
        self.sweeps += 1
        if learn:
            slopes = workers.total(task)[:, 0]
            self.alpha = counts.learned_alpha(self.alpha, slopes, settings.learn_alpha == "symmetric")
        if settings.learn_beta and self.sweeps > BURN_IN:
            self.beta = counts.learned_beta(cells, totals, self.beta, self.collection.vocabulary)
        self.now = self.cluster.recent_usage([reply.meta["account"] for reply in replies])

    def _sweep(self, learn: bool = False, initializing: bool = False) -> Task:
        ask = {"number": self.sweeps, "learn": learn, "initializing": initializing, **self._round()}
        return self.cluster.workers.start("sweep", ask, values=self.priors())

    def check(self) -> tuple[list[tuple[int, int]], NDArray[np.int64]]:
        """Check that the counts add up to all tokens; return the number of cells by count n_wk, and n_k.

        Raises:
            InputError: they do not, and a filter may have dropped some.
            ProtocolError: they do not.
        """
        cluster, tokens = self.cluster, self.collection.tokens
        words = cluster.servers.call("lda_tally", vector=cluster.vectors["words"])
        # Not by an export, which a successor of the scheduler would repeat later, with other counts.
        topics = np.arange(self.settings.topics, dtype=np.uint64)
        totals: NDArray[np.int64] = cluster.vectors["topics"].pull(topics).result()
        found = -1 if any(each["sum"] < 0 for each in words) else sum(each["sum"] for each in words)
        if found != tokens or int(totals.sum()) != tokens or totals.min() < 0:
            if filters := " or ".join(cluster.dropping):
                raise InputError(
                    f"[filters] push: {filters} drops counts, which must all arrive: leave it out"
                )
            raise ProtocolError(
                f"the counts of words in topics add up to {found}, those of topics to {int(totals.sum())}, "
                f"and there are {tokens} tokens (-1: a count is negative)"
            )
        return counts.cells_of(words), totals

    def recover(self) -> None:
        """Continue with other workers."""
        self._load()
        self.recount()

    def recount(self) -> None:
        """Compute all counts again; tokens without a topic draw one."""
        cluster, workers = self.cluster, self.cluster.workers
        workers.call("draw", {"cuts": self.cuts}, values=self.priors())
        for vector in cluster.vectors.values():
            cluster.servers.call("lda_clear", vector=vector)
        workers.call("recount", self._round())
        self.check()

    def priors(self) -> NDArray[np.float64]:
        """Return alpha and beta as workers get them: f8[K + 1, 1]."""
        return np.append(self.alpha, self.beta)[:, None]

    def words(self) -> list[str] | None:
        """Return the vocabulary's words, if they are known."""
        words: list[str] | None = self.cluster.workers.call("words", only=[0])[0]["words"]
        return words

    def _round(self) -> dict[str, Any]:
        """Return the arguments of a call: its steps, and the number of its first round."""
        first = self.round
        self.round += self.groups * (len(self.cuts) - 1)
        return {"groups": self.groups, "cuts": self.cuts, "round": first}

    def _show(self, table: progress.Table) -> None:
        trained, tokens = self.cluster.trained, self.collection.tokens
        facts = {"sweep": self.sweeps, "seconds": trained}
        if self.sweeps % self.settings.evaluate_every == 0 or self.sweeps >= self.settings.sweeps:
            facts["log_likelihood"] = self.likelihood
            facts["log_likelihood_per_token"] = self.likelihood / tokens
        learned = {}
        if self.settings.learn_alpha != "fixed":
            learned["alpha"] = float(self.alpha.mean())
        if self.settings.learn_beta:
            learned["beta"] = self.beta
        waiting = sum(self.now["waiting"]) / len(self.now["waiting"])
        self.cluster.event("sweep", **facts, **learned, waiting=waiting)
        table.row(self.now | facts | {"tokens/s": tokens * self.sweeps / max(trained, 1e-9)})

    def _unfit(self, about: dict[str, Any]) -> str:
        """Return why a run cannot continue from a checkpoint's state; "" if it can."""
        if problem := schema_error(about["state"], SCHEMA, "about.state"):
            return problem
        alpha, beta, topics = about["state"]["alpha"], about["state"]["beta"], self.settings.topics
        if len(alpha) != topics:
            return f"about.state.alpha is of {len(alpha)} topics, and there are {topics}"
        if not all(0 < each < math.inf for each in (*alpha, beta)):
            return "about.state: alpha and beta are finite, and above 0"
        return ""

    def _take_state(self, state: dict[str, Any]) -> None:
        self.sweeps, self.round = state["sweeps"], state["round"]
        self.alpha, self.beta, self.likelihood = np.array(state["alpha"]), state["beta"], state["likelihood"]

    def _restart_state(self) -> dict[str, Any]:
        """Return the state from which a successor of the scheduler continues."""
        more = {"groups": self.groups, "cuts": self.cuts, "seen": list(self.seen.items())}
        return {**self._state(), **more, "parts": self.assignment.table.state()}

    def _continue_from(self, state: dict[str, Any]) -> None:
        self._take_state(state)
        self.groups, self.cuts, self.seen = state["groups"], state["cuts"], dict(state["seen"])
        self.assignment.table = Workload.restored(state["parts"])

    def _state(self) -> dict[str, Any]:
        return {
            "sweeps": self.sweeps,
            "round": self.round,
            "alpha": self.alpha.tolist(),
            "beta": self.beta,
            "likelihood": self.likelihood,
        }

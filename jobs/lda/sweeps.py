"""The worker's side: sweeps over its documents, a range of words at a time.

All workers make the same number of steps, one per group of documents and range of words, even with fewer groups:

    for each group, for each range of words:
        pull the rows n_wk of the next range              ahead of time, into one of two buffers
        n_k = the servers' values at most tau steps ago, plus the pushes since
        draw a topic for each token of the group whose word is in the range      (`sampler`)
        push what has changed: n_wk sparsely; n_k, and get n_k in reply

Each worker begins with another range, so that no two sample the same words at a time, and a pulled range includes the
changes of the others (as in NOMAD, Yu et al., WWW 2015, where words travel from worker to worker).
There are at least two ranges per worker, so no worker changes the range that is pulled ahead of time. Under sequential
consistency the pushes of all workers of a step are applied together, and a range is pulled after those of the last step
but one; so nothing depends on the order of messages, nor on the number of servers.
Otherwise a range is pulled after this worker's own last push to it, so that its own tokens are counted.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import (
    NO_ROUND,
    Answer,
    CheckpointError,
    Context,
    KeyRange,
    PushPull,
    Task,
    push_pull,
    unmet,
)
from mpips.data import SameFiles, resolve
from mpips.jobs.lda.documents import Documents, Reads
from mpips.jobs.lda.sampler import (
    NO_CHANGES,
    Changes,
    Gibbs,
    Metropolis,
    Prior,
    Sampler,
    counts_of,
    random_state,
)
from mpips.jobs.lda.settings import Settings

PIECE = 1 << 21
"""Approximate number of counts n_wk that are pulled at a time."""
LEAST = 4
"""Least number of ranges of words, so that one can be pulled ahead of time."""
SKIMMED = 100
"""Number of counts of a row whose scan takes as long as one token."""

MARKS = "parts"
"""The name of the array of a checkpoint that identifies the documents."""
OTHERS = (
    "the checkpoint was written with other documents, or other [lda] block_tokens, held_tokens or sampler"
)

I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
Words = tuple[int, int]


def word_cuts(frequencies: I8, topics: int, workers: int) -> list[int]:
    """Partition the words into ranges of about equal cost; return the begin of each, and V.

    frequencies: i8[V], tokens of each word. The cost of a range is a sum of its tokens and its rows' lengths.
    """
    vocabulary = len(frequencies)
    count = max(LEAST, 2 * workers, vocabulary * topics // PIECE)
    cost = np.cumsum(frequencies / workers + topics / SKIMMED)
    cuts = np.searchsorted(cost, cost[-1] * np.arange(1, count) / count) + 1
    return sorted({0, *np.minimum(cuts, vocabulary).tolist(), vocabulary})


class Totals:
    """A worker's estimate of the totals n_k: the servers' last answer, plus its own pushes since."""

    def __init__(self, context: Context, base: I8) -> None:
        self.context, self._base = context, base
        self._in_flight: dict[int, tuple[Task, I8]] = {}

    def push(self, time: int, change: I8, round: int) -> None:
        """Push changes; the reply has the totals after them."""
        after = [task for task, _ in self._in_flight.values()][-1:]
        whole = KeyRange(0, len(change))
        self._in_flight[time] = (
            self.context.vectors["topics"].push_pull(whole, change, round=round, after=after),
            change,
        )

    def at(self, needed: Collection[int]) -> I8:
        """Return the totals, i8[K], including at least the replies to the pushes at the times `needed`."""
        self.context.wait_all([self._in_flight[time][0] for time in unmet(needed, self._in_flight)])
        for time in list(self._in_flight):
            task, _ = self._in_flight[time]
            if not task.done:
                break
            self._base = task.result().reshape(-1)
            del self._in_flight[time]
        now = self._base.copy()
        for _, change in self._in_flight.values():
            now += change
        return now


class Sweeper:
    """The part of a worker that samples; the scheduler calls its methods."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.settings: Settings = context.job.settings
        self.data = resolve(context.job.data, str(context.base))
        self.consistency: PushPull = push_pull(context.job.consistency)
        self.aggregate = context.job.consistency.is_sequential
        self.files = SameFiles(self.data)
        self.documents = Documents(context, self.data, self.files, self.settings.block_tokens)
        self._samplers: dict[int, Sampler] = {}
        self._buffers: list[I4] = []
        self._pushes: list[tuple[Words, Task]] = []
        self._restored = False

    # --- documents

    def load(self, reads: Reads, scratch: str) -> dict[str, Any]:
        """Read documents into the folder `scratch`; return the totals of all documents, and those of this worker."""
        self._store_topics()
        self.documents.read(reads, Path(scratch))
        corpus = self.documents.any
        self.vocabulary = corpus.vocabulary
        return {
            "documents": corpus.all_docs,
            "tokens": corpus.all_tokens,
            "vocabulary": corpus.vocabulary,
            "left_out": corpus.left_out,
            "groups": len(self.documents.groups),
            "mine": self.documents.tokens,
            "lacking": self.documents.lacking,
        }

    def check_files(self) -> Answer:
        """Check that the data files are those of the start; return their names and sizes, i8[1 + files, 1]."""
        return Answer(values=self.files.check_all()[:, None])

    def frequencies(self) -> Answer:
        """Count the tokens of each word, i8[V, 1]."""
        counts = np.zeros(self.vocabulary, np.int64)
        for group in range(len(self.documents.groups)):
            counts += np.bincount(self.documents.load(group)[0].words, minlength=self.vocabulary)
        return Answer(values=counts[:, None])

    def _sampler(self, group: int) -> Sampler:
        found = self._samplers.get(group)
        if found is None:
            block, z = self.documents.load(group)
            shape = self.settings.topics, self.vocabulary
            mh = self.settings.sampler == "mh"
            found = Metropolis(block, z, *shape, self.settings.mh_steps) if mh else Gibbs(block, z, *shape)
            self._samplers[group] = found
        return found

    def _done(self, group: int) -> None:
        """Discard a sampler if there are too many tokens to keep all in memory."""
        if self.documents.tokens > self.settings.held_tokens:
            self.documents.keep(group, self._samplers.pop(group).topics())

    def _store_topics(self) -> None:
        """Store the topics of the samplers, and discard these."""
        for group, each in self._samplers.items():
            self.documents.keep(group, each.topics())
        self._samplers.clear()

    # --- sweeps

    def sweep(
        self,
        number: int,
        groups: int,
        cuts: list[int],
        round: int,
        learn: bool,
        initializing: bool,
        values: NDArray[Any],
    ) -> Answer:
        """Draw a topic for each token; return the documents' part of the log-likelihood, and alpha's slopes if asked.

        initializing: only the first worker draws; see `Training.sweep`.
        values: f8[K + 1, 1], alpha and beta.
        """
        prior = self._prior(values)
        slopes = np.zeros(prior.topics + 1 if learn else 0)
        likelihood = 0.0
        mine = (
            range(len(self.documents.groups))
            if not initializing or self.context.index_of_all == 0
            else range(0)
        )
        for step, words, rows, totals in self._steps(groups, cuts, prior.topics, round):
            group, place = divmod(step, len(cuts) - 1)
            changes, before = NO_CHANGES, totals.copy()
            if group in mine:
                with self.context.working():
                    sampler = self._sampler(group)
                    if place == 0:
                        sampler.begin()
                        rng = random_state(self.context.job.seed, number, self.documents.first(group))
                    changes = sampler.sample(words, rows, totals, prior, rng)
                    if place == len(cuts) - 2:
                        likelihood += sampler.documents(prior, slopes)
                        self._done(group)
            self._push(step, words, changes, totals - before, round)
        self._end()
        meta = {"likelihood": likelihood, "account": self.context.account()}
        return Answer(meta, values=slopes[:, None] if learn else None)

    def draw(self, cuts: list[int], values: NDArray[Any]) -> None:
        """Draw topics for tokens without one, by the present counts, which are not changed."""
        prior = self._prior(values)
        lacking = [g for g in range(len(self.documents.groups)) if (self.documents.topics(g) < 0).any()]
        rng = random_state(self.context.job.seed, 2**32 - 1, self.context.rank)
        for step, words, rows, totals in self._steps(len(lacking), cuts, prior.topics):
            with self.context.working():
                group = lacking[step // (len(cuts) - 1)]
                self._sampler(group).sample(words, rows, totals, prior, rng, True)
        self._store_topics()

    def recount(self, groups: int, cuts: list[int], round: int) -> None:
        """Push the counts of all tokens to servers whose counts are 0."""
        self._store_topics()
        topics = self.settings.topics
        self._begin(np.zeros(topics, np.int64))
        for step, words in enumerate(self._plan(groups, cuts)):
            group = step // (len(cuts) - 1)
            changes, totals = NO_CHANGES, np.zeros(topics, np.int64)
            if group < len(self.documents.groups):
                with self.context.working():
                    changes = counts_of(*self.documents.load(group), words, topics)
                    np.add.at(totals, (changes.keys % np.uint64(topics)).astype(np.int64), changes.counts)
            self._push(step, words, changes, totals, round)
        self._end()

    def _plan(self, groups: int, cuts: list[int]) -> list[Words]:
        """List the ranges of words of all steps, each worker with another first range."""
        ranges = list(itertools.pairwise(cuts))
        first = self.context.index_of_all * len(ranges) // self.context.count_of_all
        return (ranges[first:] + ranges[:first]) * groups

    def _steps(
        self, groups: int, cuts: list[int], topics: int, round: int = 0
    ) -> Iterator[tuple[int, Words, I4, I8]]:
        """Yield the steps of a call, (step, words, n_wk, n_k), while the rows of the next one are pulled."""
        plan = self._plan(groups, cuts)
        size = max(last - first for first, last in itertools.pairwise(cuts)) * topics
        fit = bool(self._buffers) and len(self._buffers[0]) >= size
        rooms = self._buffers if fit else [np.empty(size, np.int32) for _ in range(2)]
        # Pulls of a failed call may still write into the old ones.
        self._buffers = []
        self._begin(self.context.vectors["topics"].pull(KeyRange(0, topics)).result())
        ahead = self._pull(plan[0], rooms[0]) if plan else None
        for step, words in enumerate(plan):
            self.context.step(round + step)
            assert ahead is not None
            rows = ahead.result().reshape(-1)
            totals = self._totals.at(self.consistency.pull(step))
            if step + 1 < len(plan):
                ahead = self._pull(plan[step + 1], rooms[(step + 1) % 2])
            yield step, words, rows, totals
        self._buffers = rooms

    def _pull(self, words: Words, room: I4) -> Task:
        """Pull the rows of some words, after the pushes that the module names."""
        first, last = (word * self.settings.topics for word in words)
        self._pushes = [(of, task) for of, task in self._pushes if not task.done]
        after = [task for of, task in self._pushes if self.aggregate or of == words]
        return self.context.vectors["words"].pull(
            KeyRange(first, last), out=room[: last - first], after=after
        )

    def _push(self, step: int, words: Words, changes: Changes, totals: I8, round: int) -> None:
        number = round + step if self.aggregate else NO_ROUND
        push = self.context.vectors["words"].push(changes.keys, changes.counts, round=number)
        self._pushes.append((words, push))
        self._totals.push(step, totals, number)

    def _begin(self, base: I8) -> None:
        self._totals = Totals(self.context, base.reshape(-1).copy())
        self._pushes = []

    def _end(self) -> None:
        """Wait until all pushes are applied."""
        self.context.wait_all([task for _, task in self._pushes])
        self._totals.at(range(2**62))

    def _prior(self, values: NDArray[Any]) -> Prior:
        flat = np.asarray(values, np.float64).reshape(-1)
        return Prior(flat[:-1].copy(), float(flat[-1]), self.vocabulary)

    # --- checkpoints

    def state(self) -> dict[str, Any]:
        """Return the topics of all tokens, and by group the exact state of the samplers in memory."""
        arrays: dict[str, Any] = {MARKS: self.documents.marks}
        for group in range(len(self.documents.groups)):
            found = self._samplers.get(group)
            kept = {"topics": self.documents.topics(group)} if found is None else found.state()
            arrays |= {f"{group}.{name}": array for name, array in kept.items()}
        return arrays

    def restore(self, **arrays: NDArray[Any]) -> None:
        """Restore the arrays of `state`, unless those are of other parts of the documents.

        Raises:
            CheckpointError: they belong to other documents.
        """
        self._samplers.clear()
        # A checkpoint of an earlier version has none.
        before, now = arrays.pop(MARKS, self.documents.marks), self.documents.marks
        self._restored = before.shape == now.shape and np.array_equal(before[:, :2], now[:, :2])
        if not self._restored:
            return
        if not np.array_equal(before, now):
            raise CheckpointError(OTHERS)
        kept: dict[int, dict[str, NDArray[Any]]] = {}
        try:
            for name, array in arrays.items():
                number, _, what = name.partition(".")
                kept.setdefault(int(number), {})[what] = array
            if sorted(kept) != list(range(len(self.documents.groups))):
                raise CheckpointError(OTHERS)
            for group, state in kept.items():
                if "topics" in state:
                    self.documents.keep(group, self._sound(state["topics"]))
                else:
                    self._sampler(group).take(state)
        except (ValueError, KeyError, TypeError, IndexError):
            raise CheckpointError(OTHERS) from None

    def restored(self) -> bool:
        """Return whether the tokens have the topics of the checkpoint."""
        return self._restored

    def _sound(self, z: NDArray[Any]) -> NDArray[np.int32]:
        """Return topics that were read from a file; ValueError unless they are valid."""
        if (
            z.ndim != 1
            or z.dtype.kind != "i"
            or z.min(initial=0) < -1
            or z.max(initial=0) >= self.settings.topics
        ):
            raise ValueError("they are not valid topics")
        return z.astype(np.int32)

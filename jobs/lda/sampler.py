"""The samplers: the state of a block's tokens during sampling, and the sampling of their topics.

Both have the same methods: `sample` visits the tokens of a range of words whose counts n_wk were pulled, and returns
the changes to be pushed; `topics` returns the tokens' topics as they are stored on disk.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from mpips import InputError
from mpips.jobs.lda import kernels, proposals
from mpips.jobs.lda.corpus import Block
from mpips.jobs.lda.counts import document_terms
from mpips.jobs.lda.evaluate import doc_likelihood

F8 = NDArray[np.float64]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
U8 = NDArray[np.uint64]
MOST_TOPICS = 0xFFFF
"""Largest number of topics of `Metropolis`, which stores them in 16 bits."""
RARELY = 4
"""Number of visits between two calls of `compact`; in the first visits it is called each time."""


class Prior(NamedTuple):
    """The Dirichlet priors: of a document's topics, alpha f8[K], and of a topic's words, beta for each of V."""

    alpha: F8
    beta: float
    vocabulary: int

    @property
    def topics(self) -> int:
        """Return K."""
        return len(self.alpha)


class Changes(NamedTuple):
    """Changes of counts n_wk: keys w K + k, u8[n], ascending, and differences, i4[n]."""

    keys: U8
    counts: I4


NO_CHANGES = Changes(np.empty(0, np.uint64), np.empty(0, np.int32))


class Sampler(Protocol):
    """A sampler of one block; see the module."""

    def begin(self) -> None:
        """Begin a visit: one `sample` for each range of words, in any order."""

    def sample(
        self, words: tuple[int, int], rows: I4, totals: I8, prior: Prior, rng: U8, fresh: bool = False
    ) -> Changes:
        """Draw topics for the tokens of a range of words; `fresh`: only for those that have none.

        rows: i4[words K], n_wk, and totals: i8[K], n_k; both are updated in place.
        """

    def topics(self) -> I4:
        """Return the topics of the block's tokens, i4[tokens], in the order of the block."""

    def documents(self, prior: Prior, slopes: F8) -> float:
        """Return the documents' part of the joint log-likelihood; see `counts.document_terms` for `slopes`."""

    def state(self) -> dict[str, NDArray[Any]]:
        """Return the state from which a new sampler continues with the same bits."""

    def take(self, state: dict[str, NDArray[Any]]) -> None:
        """Restore the `state` of a sampler of the same block.

        Raises:
            ValueError: it does not fit this block.
        """


class _ByWord:
    """The tokens of a block in the order of words."""

    def __init__(self, block: Block, vocabulary: int) -> None:
        self.block = block
        self.starts = np.zeros(vocabulary + 1, np.int64)
        np.cumsum(np.bincount(block.words, minlength=vocabulary), out=self.starts[1:])
        self.order, self.docs = np.empty_like(block.words), np.empty_like(block.words)
        kernels.by_word(block.ptr, block.words, self.starts, self.order, self.docs)

    def room(self, first: int, last: int) -> Changes:
        """Allocate the changes of a visit to the tokens of a range of words."""
        most = 2 * int(self.starts[last] - self.starts[first])
        return Changes(np.empty(most, np.uint64), np.empty(most, np.int32))


class Gibbs(_ByWord):
    """Collapsed Gibbs sampling: each topic is drawn by its exact conditional."""

    def __init__(self, block: Block, z: I4, topics: int, vocabulary: int) -> None:
        super().__init__(block, vocabulary)
        docs = len(block.ptr) - 1
        longest = int(np.diff(block.ptr).max(initial=0))
        self.shift, self.longest = longest.bit_length(), min(longest, topics) + 1
        wide = self.shift + (topics - 1).bit_length() > 32
        self.pairs = np.zeros(len(block.words) + docs, np.uint64 if wide else np.uint32)
        self.heads = (block.ptr[:-1] + np.arange(docs)).astype(np.int32)[self.docs]
        slots = np.empty(len(z), np.int32)
        kernels.fill_pairs(block.ptr, z, topics, self.shift, self.pairs, slots)
        self.slots, self.visits, self.most = slots[self.order], 0, topics
        # `heads` contains it.
        del self.docs

    def begin(self) -> None:
        """See `Sampler`."""
        self.visits += 1
        if self.visits > 1 and (self.visits <= RARELY or self.visits % RARELY == 0):
            kernels.compact(self.block.ptr, self.pairs, self.shift, self.heads, self.slots)

    def sample(
        self, words: tuple[int, int], rows: I4, totals: I8, prior: Prior, rng: U8, fresh: bool = False
    ) -> Changes:
        """See `Sampler`."""
        first, last = words
        keys, counts = self.room(first, last)
        mass = prior.beta * prior.vocabulary
        n = kernels.gibbs(
            first, last, self.starts, self.heads, self.slots, self.pairs, self.shift, self.longest,
            rows, totals, prior.alpha.astype(np.float32), prior.beta, mass, rng, fresh, keys, counts,
        )  # fmt: skip
        return Changes(keys[:n].copy(), counts[:n].copy())

    def topics(self) -> I4:
        """See `Sampler`."""
        z = np.empty(len(self.order), np.int32)
        kernels.topics_of(self.pairs, self.shift, self.heads, self.slots, self.order, z)
        return z

    def documents(self, prior: Prior, slopes: F8) -> float:
        """See `Sampler`."""
        return float(document_terms(self.block.ptr, self.pairs, self.shift, prior.alpha, slopes))

    def state(self) -> dict[str, NDArray[Any]]:
        """See `Sampler`."""
        return {"pairs": self.pairs, "slots": self.slots, "visits": np.array([self.visits])}

    def take(self, state: dict[str, NDArray[Any]]) -> None:
        """See `Sampler`."""
        if any(state[name].dtype.kind not in "iu" for name in ("pairs", "slots", "visits")):
            raise ValueError("its pairs and slots must be whole numbers")
        pairs, slots = state["pairs"].astype(self.pairs.dtype), state["slots"].astype(np.int32)
        if pairs.shape != self.pairs.shape or slots.shape != self.slots.shape:
            raise ValueError("its tokens are not as many as those of the block")
        self._check(pairs, slots)
        self.pairs[:], self.slots[:], self.visits = pairs, slots, int(state["visits"][0])

    def _check(self, pairs: Any, slots: I4) -> None:
        """Raise ValueError unless each token has one of its document's pairs, and each pair counts its tokens."""
        heads, rooms = self.block.ptr[:-1] + np.arange(len(self.block.ptr) - 1), np.diff(self.block.ptr)
        sizes = np.zeros(len(pairs), np.int64)
        sizes[heads] = np.minimum(pairs[heads], len(pairs))
        placed = slots >= 0
        if (sizes[heads] > rooms).any() or slots.min(initial=0) < -1 or (slots >= sizes[self.heads]).any():
            raise ValueError("a token is in no pair of its document")
        found = np.bincount(self.heads[placed] + 1 + slots[placed], minlength=len(pairs))
        # A pair is valid if its index is below the number in its document's head.
        behind = np.arange(len(pairs)) - np.repeat(heads, rooms + 1)
        live = (behind > 0) & (behind <= np.repeat(sizes[heads], rooms + 1))
        counted = (pairs & pairs.dtype.type((1 << self.shift) - 1))[live]
        if (counted != found[live]).any() or (pairs[live] >> pairs.dtype.type(self.shift) >= self.most).any():
            raise ValueError("a pair counts other tokens, or those of no topic")


class Metropolis(_ByWord):
    """Metropolis-Hastings with `steps` pairs of proposals for each token: the cost does not grow with K.

    `Gibbs` draws the first topics: from random ones, proposals converge slowly.
    """

    def __init__(self, block: Block, z: I4, topics: int, vocabulary: int, steps: int = 2) -> None:
        super().__init__(block, vocabulary)
        if topics > MOST_TOPICS:
            raise InputError(
                f'[lda] topics = {topics}: sampler = "mh" takes at most {MOST_TOPICS}; use "gibbs"'
            )
        self.z, self.steps, self.most = z.astype(np.uint16), steps, topics
        self.first = Gibbs(block, z, topics, vocabulary) if len(z) and z.min() < 0 else None

    def begin(self) -> None:
        """See `Sampler`."""
        if self.first is not None:
            self.first.begin()
            z = self.first.topics()
            if z.min() >= 0:
                self.z, self.first = z.astype(np.uint16), None

    def sample(
        self, words: tuple[int, int], rows: I4, totals: I8, prior: Prior, rng: U8, fresh: bool = False
    ) -> Changes:
        """See `Sampler`."""
        if self.first is not None:
            return self.first.sample(words, rows, totals, prior, rng, fresh)
        if fresh:
            return NO_CHANGES
        keys, counts = self.room(*words)
        n = proposals.metropolis(
            *words, self.starts, self.block.ptr, self.docs, self.order, self.z, self.steps,
            rows, totals, prior.alpha.astype(np.float32), prior.beta, prior.beta * prior.vocabulary, rng, keys, counts,
        )  # fmt: skip
        return Changes(keys[:n].copy(), counts[:n].copy())

    def topics(self) -> I4:
        """See `Sampler`."""
        return self.z.astype(np.int32) if self.first is None else self.first.topics()

    def documents(self, prior: Prior, slopes: F8) -> float:
        """See `Sampler`."""
        z = self.topics()
        if not len(slopes):
            return doc_likelihood(self.block, z, prior.topics, prior.alpha)
        pairs, shift = np.zeros(len(z) + len(self.block.ptr), np.uint64), 32
        kernels.fill_pairs(self.block.ptr, z, prior.topics, shift, pairs, np.empty(len(z), np.int32))
        return float(document_terms(self.block.ptr, pairs, shift, prior.alpha, slopes))

    def state(self) -> dict[str, NDArray[Any]]:
        """See `Sampler`."""
        return {"z": self.topics()}

    def take(self, state: dict[str, NDArray[Any]]) -> None:
        """See `Sampler`."""
        z = state["z"]
        if z.shape != self.z.shape or z.min(initial=0) < 0 or z.max(initial=0) >= self.most:
            raise ValueError("its topics are not those of the block's tokens")
        self.z[:], self.first = z, None


def counts_of(block: Block, z: I4, words: tuple[int, int], topics: int) -> Changes:
    """Count the topics of a range of a block's words: n_wk, as changes from 0."""
    mine = (block.words >= words[0]) & (block.words < words[1]) & (z >= 0)
    keys, counts = np.unique(block.words[mine].astype(np.int64) * topics + z[mine], return_counts=True)
    return Changes(keys.astype(np.uint64), counts.astype(np.int32))


def random_state(seed: int, sweep: int, document: int) -> U8:
    """Return the initial random state of a visit to the block that begins with `document`."""
    state: U8 = np.random.SeedSequence([seed, sweep, document]).generate_state(2, np.uint64).astype(np.uint64)
    return state

"""Measures of quality: the joint likelihood and held-out perplexity; for coherence see `topics`.

The joint log-likelihood of words and topics is a sum over documents, words and topics (Griffiths and Steyvers, PNAS
2004), with n_dk, n_wk and n_k the counts of topics in documents, of words in topics, and of topics:

    log p(w, z) =  sum_d  lgG(sum_k a_k) - lgG(n_d + sum_k a_k) + sum_k (lgG(n_dk + a_k) - lgG(a_k))
                 + sum_wk (lgG(n_wk + b) - lgG(b))
                 + sum_k  (lgG(V b) - lgG(n_k + V b))

Each line is a function here, and a sum over parts of the documents, the words or the topics is the whole. A count of 0
adds 0, so words without tokens can be left out.

Perplexity is by document completion (Wallach et al., ICML 2009): from a random half of a document's tokens its
topics' shares are found, phi being fixed, and the other half is scored. The shares are the fixed point of

    theta_k = (a_k + sum_i r_ik) / (n + sum a),   r_ik ~ theta_k phi_wk,   phi_wk = (n_wk + b) / (n_k + V b)

which is EM's for the MAP estimate with a + 1 in place of a (Asuncion et al., UAI 2009: about as good as sampling).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import kernel
from mpips.data.kernels import mix
from mpips.jobs.lda.corpus import Block

TABLE = 4096
"""Counts below which lgG(n + b) - lgG(b) is looked up."""
FOLD_IN = 30
"""Iterations of the fixed point of a document; further ones change only the last digits."""
SETTLED = 1e-5
"""The iteration ends when the shares change by less than this in total."""


# --- The joint likelihood --------------------------------------------------------------------------------------------


@kernel("f8(i8[::1], i4[::1], f8[::1], f8, i4[::1])")
def _documents(
    ptr: NDArray[np.int64],
    z: NDArray[np.int32],
    alpha: NDArray[np.float64],
    alpha_sum: float,
    counts: NDArray[np.int32],
) -> float:
    # G(n + a) / G(a) = a (a + 1) ... (a + n - 1): a product; its logarithm is taken before it overflows.
    total, start = 0.0, math.lgamma(alpha_sum)
    for d in range(ptr.shape[0] - 1):
        begin, end = ptr[d], ptr[d + 1]
        product = 1.0
        for i in range(begin, end):
            k = z[i]
            product *= alpha[k] + counts[k]
            counts[k] += 1
            if product > 1e200 or product < 1e-200:
                total += math.log(product)
                product = 1.0
        for i in range(begin, end):
            counts[z[i]] = 0
        total += math.log(product) + start - math.lgamma(alpha_sum + (end - begin))
    return total


def doc_likelihood(block: Block, z: NDArray[np.int32], topics: int, alpha: NDArray[np.float64]) -> float:
    """Return the documents' part of the joint log-likelihood.

    Args:
        block: the documents.
        z: the topics of their tokens, i4[tokens], each from 0 to `topics` - 1.
        topics: K.
        alpha: f8[K], each above 1e-100.

    Raises:
        ValueError: a token has no topic, or the arrays do not fit each other.
    """
    if len(z) != block.ptr[-1] or len(alpha) != topics:
        raise ValueError(
            f"{len(z)} topics of {block.ptr[-1]} tokens, {len(alpha)} numbers alpha of {topics} topics"
        )
    if len(z) and not 0 <= z.min() <= z.max() < topics:
        raise ValueError(f"topics of tokens are {z.min()} to {z.max()}; they must be 0 to {topics - 1}")
    alpha = np.ascontiguousarray(alpha, np.float64)
    return float(_documents(block.ptr, z, alpha, float(alpha.sum()), np.zeros(topics, np.int32)))


@kernel("f8(f8)")
def log_gamma(x: float) -> float:
    """Return lgG(x) of x >= 100 by Stirling's series, to machine precision."""
    y = 1.0 / (x * x)
    return (
        (x - 0.5) * math.log(x) - x + 0.9189385332046727 + (1.0 / 12 - y * (1.0 / 360 - y * (1.0 / 1260))) / x
    )


@kernel("f8(i4[::1], f8, f8, f8[::1])")
def _words(counts: NDArray[np.int32], beta: float, start: float, table: NDArray[np.float64]) -> float:
    total = 0.0
    for i in range(counts.shape[0]):
        n = counts[i]
        if n != 0:
            if n < 0:
                return math.nan
            total += table[n] if n < table.shape[0] else log_gamma(n + beta) - start
    return total


@lru_cache(8)
def _table(beta: float) -> NDArray[np.float64]:
    start = math.lgamma(beta)
    return np.array([math.lgamma(n + beta) - start for n in range(TABLE)])


def word_likelihood(rows: NDArray[np.int32], beta: float) -> float:
    """Return the words' part of the joint log-likelihood, of counts n_wk, i4 of any shape; zeros may be left out.

    Raises:
        ValueError: a count is negative.
    """
    counts = np.ascontiguousarray(rows, np.int32).reshape(-1)
    total = float(_words(counts, beta, math.lgamma(beta), _table(beta)))
    if math.isnan(total):
        raise ValueError("a count of a word in a topic is negative")
    return total


def topic_norm(n_k: NDArray[np.int64], beta: float, vocabulary: int) -> float:
    """Return the topics' part of the joint log-likelihood, of n_k: i8[K], or of some of the topics."""
    mass = beta * vocabulary
    return sum(math.lgamma(mass) - math.lgamma(n + mass) for n in n_k.tolist())


# --- Inference of documents' topics --------------------------------------------------------------------------


class Distinct(NamedTuple):
    """The distinct words of a block, and the block with positions among these instead of words."""

    ids: NDArray[np.int32]
    """i4[n], ascending."""
    block: Block


def distinct(block: Block) -> Distinct:
    """Number the distinct words of a block from 0, so that only their rows are needed."""
    ids, places = np.unique(block.words, return_inverse=True)
    return Distinct(ids, Block(block.ptr, places.astype(np.int32).reshape(-1)))


@kernel("f8(i4[::1], i8[::1], i8, i4[:, ::1], f8[::1], f8, f8[::1], f8[::1], f8[::1], i8)")
def _fold_in(
    words: NDArray[np.int32],
    times: NDArray[np.int64],
    size: int,
    rows: NDArray[np.int32],
    inverse: NDArray[np.float64],
    beta: float,
    alpha: NDArray[np.float64],
    theta: NDArray[np.float64],
    scratch: NDArray[np.float64],
    rounds: int,
) -> float:
    """Find theta of a document with `size` distinct words; return the last change of it."""
    topics = theta.shape[0]
    scaled, gathered = scratch[:topics], scratch[topics:]
    mass = 0.0
    for k in range(topics):
        mass += alpha[k]
    for k in range(topics):
        theta[k] = alpha[k] / mass
    tokens = 0
    for i in range(size):
        tokens += times[i]
    change = 0.0
    for _ in range(rounds if tokens > 0 else 0):
        for k in range(topics):
            scaled[k] = theta[k] * inverse[k]
            gathered[k] = 0.0
        for i in range(size):
            row = rows[words[i]]
            a, b, c, d = 0.0, 0.0, 0.0, 0.0
            k = 0
            while k + 3 < topics:
                a += scaled[k] * (row[k] + beta)
                b += scaled[k + 1] * (row[k + 1] + beta)
                c += scaled[k + 2] * (row[k + 2] + beta)
                d += scaled[k + 3] * (row[k + 3] + beta)
                k += 4
            while k < topics:
                a += scaled[k] * (row[k] + beta)
                k += 1
            share = times[i] / ((a + b) + (c + d))
            for k in range(topics):
                gathered[k] += share * (row[k] + beta)
        change = 0.0
        for k in range(topics):
            now = (alpha[k] + scaled[k] * gathered[k]) / (mass + tokens)
            change += abs(now - theta[k])
            theta[k] = now
        if change < SETTLED:
            break
    return change


@kernel("i8(i4[::1], i8, i8, i4[::1], i8[::1])")
def _count(
    words: NDArray[np.int32], begin: int, end: int, found: NDArray[np.int32], times: NDArray[np.int64]
) -> int:
    """Sort words[begin:end]; fill in the distinct ones and their counts; return their number."""
    part = np.sort(words[begin:end])
    size = 0
    for word in part:
        if size == 0 or found[size - 1] != word:
            found[size] = word
            times[size] = 0
            size += 1
        times[size - 1] += 1
    return size


@kernel("f8(i8[::1], i4[::1], i8[::1], i4[:, ::1], f8[::1], f8, f8[::1], i8, i8, f8[:, ::1])")
def _complete(
    ptr: NDArray[np.int64],
    words: NDArray[np.int32],
    documents: NDArray[np.int64],
    rows: NDArray[np.int32],
    inverse: NDArray[np.float64],
    beta: float,
    alpha: NDArray[np.float64],
    rounds: int,
    seed: int,
    thetas: NDArray[np.float64],
) -> float:
    """Find theta of each document: from all its words if `thetas` has rows, else from half, and score the other half.

    A document is shuffled by its index alone, so the halves do not depend on its block.
    """
    topics, longest = alpha.shape[0], 0
    for d in range(ptr.shape[0] - 1):
        longest = max(longest, ptr[d + 1] - ptr[d])
    shuffled = np.empty(longest, np.int32)
    found, times = np.empty(longest, np.int32), np.empty(longest, np.int64)
    theta, scratch = np.empty(topics), np.empty(2 * topics)
    whole = thetas.shape[0] > 0
    total = 0.0
    for d in range(ptr.shape[0] - 1):
        size = ptr[d + 1] - ptr[d]
        shuffled[:size] = words[ptr[d] : ptr[d + 1]]
        seen = size
        if not whole:
            state = mix(np.uint64(seed) ^ mix(np.uint64(documents[d])))
            for i in range(size - 1, 0, -1):
                state = mix(state)
                j = np.int64(state % np.uint64(i + 1))
                shuffled[i], shuffled[j] = shuffled[j], shuffled[i]
            seen = size // 2
        distinct_words = _count(shuffled, 0, seen, found, times)
        _fold_in(found, times, distinct_words, rows, inverse, beta, alpha, theta, scratch, rounds)
        if whole:
            thetas[d] = theta
        for i in range(seen, size):
            row = rows[shuffled[i]]
            p = 0.0
            for k in range(topics):
                p += theta[k] * inverse[k] * (row[k] + beta)
            total += math.log(p)
    return total


class Phi(NamedTuple):
    """The counts and priors that determine phi, for some words."""

    rows: NDArray[np.int32]
    """i4[n, K]: n_wk of n words."""
    n_k: NDArray[np.int64]
    """i8[K]: over all words."""
    alpha: NDArray[np.float64]
    """f8[K]."""
    beta: float
    vocabulary: int
    """V, the number of all words."""


def _run(
    block: Block, documents: NDArray[np.int64], phi: Phi, rounds: int, seed: int, room: int
) -> tuple[float, NDArray[np.float64]]:
    inverse = 1.0 / (phi.n_k.astype(np.float64) + phi.beta * phi.vocabulary)
    rows = np.ascontiguousarray(phi.rows, np.int32)
    # A model that was pickled may be read-only.
    alpha = np.require(phi.alpha, np.float64, ["C", "W"])
    if len(block.words) and block.words.max() >= len(rows):
        raise ValueError(f"a word's position is {block.words.max()} where there are {len(rows)} rows")
    thetas = np.empty((room, len(alpha)))
    total = _complete(block.ptr, block.words, documents, rows, inverse, phi.beta, alpha, rounds, seed, thetas)
    return float(total), thetas


def completion(
    block: Block, documents: NDArray[np.int64], phi: Phi, seed: int = 0, rounds: int = FOLD_IN
) -> tuple[float, int]:
    """Score held-out documents by completion; return (sum of log p over the scored tokens, their number).

    Args:
        block: the documents, with positions in `phi.rows` as words, as `distinct` makes them.
        documents: their indices among all, i8[docs]; with `seed` they determine the halves.
        phi: the topics.
        seed: the seed of the halves.
        rounds: the largest number of EM iterations.
    """
    lengths = np.diff(block.ptr)
    total, _ = _run(block, documents, phi, rounds, seed, 0)
    return total, int((lengths - lengths // 2).sum())


def perplexity(log_p: float, tokens: int) -> float | None:
    """Return exp(-log p per token); None without tokens."""
    return math.exp(-log_p / tokens) if tokens else None


def infer_theta(block: Block, phi: Phi, rounds: int = FOLD_IN) -> NDArray[np.float64]:
    """Return the shares of topics in documents, f8[docs, K], each row adding up to 1; words as for `completion`."""
    docs = len(block.ptr) - 1
    return _run(block, np.zeros(docs, np.int64), phi, rounds, 0, docs)[1]

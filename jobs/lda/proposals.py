"""The compiled inner loop of the Metropolis-Hastings sampler: the cost of a token does not grow with the topics.

Alternately two topics t are proposed for the present token, whose topic is s: one by its document, one by its word
(LightLDA, Yuan et al., WWW 2015; WarpLDA, Chen et al., VLDB 2016). The proposal probability cancels in the acceptance
ratio; notation and the order of the visits are those of `kernels`.

    proposal    drawn by            acceptance ratio
    document    by n_dk + a_k       q_t / q_s
    word        by n_wk + b         (n_dt^- + a_t) inverse_t / ((n_ds^- + a_s) inverse_s)

Each proposal is a mixture:

    document    the topic of a random token of the document (n_dk); a draw from the alias table of the prior (a_k)
    word        the topic of a random token of the word in this block; a draw from the alias table of the word's counts
                elsewhere, which stay the same during the block (together n_wk); a uniformly random topic (b)

So both are drawn by the current counts, and the chain is exact. The word's own tokens are not in the alias table: their
topics change during the block, and a table of their earlier topics would make the proposal depend on earlier states, so
that its probability would no longer cancel.

The counts of a document are computed by scanning the topics of its tokens, 32 at a time (WarpLDA).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import kernel
from mpips.jobs.lda.kernels import COUNTS, F4, GROUP, I4, I8, U8, below, draw, take_changes, unit, weigh

U2 = NDArray[np.uint16]


@kernel("f4(f4[::1], i4[::1], i8, f4[::1], i4[::1], i4[::1])")
def alias_table(weights: F4, topics: I4, n: int, keep: F4, other: I4, stack: I4) -> Any:
    """Make the alias table of n weights (Walker 1977; Vose 1991); return their sum.

    Entry e stands for topics[e] with probability keep[e], else for other[e]. stack: i4[n].
    """
    total = np.float32(0)
    for e in range(n):
        total += weights[e]
    scale = np.float32(n) / total
    small, large = 0, n
    for e in range(n):
        keep[e] = weights[e] * scale
        other[e] = topics[e]
        if keep[e] < np.float32(1):
            stack[small] = e
            small += 1
        else:
            large -= 1
            stack[large] = e
    while small > 0 and large < n:
        small -= 1
        e, f = stack[small], stack[large]
        other[e] = topics[f]
        keep[f] -= np.float32(1) - keep[e]
        if keep[f] < np.float32(1):
            large += 1
            stack[small] = f
            small += 1
    return total


@kernel("i8(u2[::1], u2)")
def occurrences(z: U2, topic: Any) -> Any:
    """Count the tokens of a topic."""
    total: Any = 0
    for begin in range(0, len(z), 4096):
        part = z[begin : begin + 4096]
        found = np.uint16(0)
        for j in range(len(part)):
            found = np.uint16(found + np.uint16(part[j] == topic))
        total += np.int64(found)
    return total


@kernel(f"i8(i8, i8, i8[::1], i8[::1], i4[::1], i4[::1], u2[::1], i8, {COUNTS}, u8[::1], i4[::1])")
def metropolis(
    first: int,
    last: int,
    starts: I8,
    ptr: I8,
    docs: I4,
    order: I4,
    z: U2,
    steps: int,
    rows: I4,
    totals: I8,
    alpha: F4,
    beta: float,
    mass: float,
    rng: U8,
    keys: U8,
    changes: I4,
) -> int:
    """Move the topics of a block's tokens of the words first .. last - 1 by `steps` pairs of proposals.

    All tokens have topics. docs, order: i4[tokens], by word: the token's document, and its place in z, u2[tokens].
    Other arguments and what is returned: see `kernels.gibbs`.
    """
    topics = len(totals)
    one, b, mass_b = np.float32(1.0), np.float32(beta), np.float32(mass)
    every, stack = np.arange(topics).astype(np.int32), np.empty(topics, np.int32)
    inverse = np.empty(topics, np.float32)
    for k in range(topics):
        inverse[k] = one / (np.float32(totals[k]) + mass_b)
    alpha_keep, alpha_other = np.empty(topics, np.float32), np.empty(topics, np.int32)
    alpha_sum = alias_table(alpha, every, topics, alpha_keep, alpha_other, stack)
    keep, other = np.empty(topics, np.float32), np.empty(topics, np.int32)
    found, weights = np.empty(topics, np.int32), np.empty(topics, np.float32)
    q = np.empty(topics, np.float32)
    moved, marks = np.zeros(topics, np.int32), np.zeros(topics // GROUP + 1, np.uint8)
    most = 0
    for w in range(first, last):
        most = max(most, starts[w + 1] - starts[w])
    here = np.empty(most, np.uint16)
    state = rng.copy()
    count = 0
    for w in range(first, last):
        begin, size = starts[w], starts[w + 1] - starts[w]
        if size == 0:
            continue
        row = rows[(w - first) * topics : (w - first + 1) * topics]
        weigh(row, b, inverse, q)
        for i in range(size):
            here[i] = z[order[begin + i]]
            moved[here[i]] += 1
        n, others = 0, np.float32(0)
        for k in range(topics):
            if row[k] > moved[k]:
                found[n], weights[n] = k, row[k] - moved[k]
                n += 1
        for i in range(size):
            moved[here[i]] = 0
        if n > 0:
            others = alias_table(weights, found, n, keep, other, stack)
        everyone = one / (np.float32(size) + others + np.float32(topics) * b)
        from_here, from_others = np.float32(size) * everyone, (np.float32(size) + others) * everyone
        for i in range(size):
            place = order[begin + i]
            mine = z[ptr[docs[begin + i]] : ptr[docs[begin + i] + 1]]
            s = np.int64(here[i])
            row[s] -= 1
            moved[s] -= 1
            marks[s // GROUP] = 1
            totals[s] -= 1
            inverse[s] = one / (np.float32(totals[s]) + mass_b)
            q[s] = (np.float32(row[s]) + b) * inverse[s]
            from_doc = np.float32(len(mine)) / (np.float32(len(mine)) + alpha_sum)
            for step in range(2 * steps):
                bits = draw(state)
                u = unit(bits)
                by_document = step % 2 == 0
                if by_document and u < from_doc:
                    t = np.int64(mine[below(bits, len(mine))])
                elif by_document:
                    e = below(bits, topics)
                    t = e if unit(draw(state)) < alpha_keep[e] else np.int64(alpha_other[e])
                elif u < from_here:
                    t = np.int64(here[below(bits, size)])
                elif u < from_others:
                    e = below(bits, n)
                    t = np.int64(found[e]) if unit(draw(state)) < keep[e] else np.int64(other[e])
                else:
                    t = below(bits, topics)
                if t == s:
                    continue
                if by_document:
                    if unit(draw(state)) * q[s] >= q[t]:
                        continue
                else:
                    had = np.float32(occurrences(mine, np.uint16(s)) - 1) + alpha[s]
                    has = np.float32(occurrences(mine, np.uint16(t))) + alpha[t]
                    if unit(draw(state)) * (had * inverse[s]) >= has * inverse[t]:
                        continue
                s = t
                z[place] = s
                here[i] = s
            row[s] += 1
            moved[s] += 1
            marks[s // GROUP] = 1
            totals[s] += 1
            inverse[s] = one / (np.float32(totals[s]) + mass_b)
            q[s] = (np.float32(row[s]) + b) * inverse[s]
        count = take_changes(w * topics, moved, marks, keys, changes, count)
    rng[0], rng[1] = state[0], state[1]
    return count

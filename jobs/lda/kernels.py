"""The compiled inner loops of the samplers: what they share, and exact sparse Gibbs.

A block's tokens are visited word by word, in a range of words whose counts have just been pulled, so that the data
of a word are in cache: its row n_wk, and, for the topics k = 1 .. K,

    inverse_k = 1 / (n_k + V b)         q_k = (n_wk + b) inverse_k.

The present token is removed from all counts (-), and `gibbs` draws its topic from

    p(k) ~ (n_dk^- + a_k) (n_wk^- + b) / (n_k^- + V b) = n_dk^- q_k  +  a_k q_k.

The first term is a sum over the topics that the document has, usually few however large K is (Yao, Mimno
and McCallum, KDD 2009). The sum of the second is kept up to date, in LANES partial sums over the topics that are equal
modulo LANES; it is drawn from rarely, in about LANES + K / LANES steps (a tree of sums over the topics, as in Yu et
al., WWW 2015, would take fewer; two levels are computed by vector instructions, again for each word).

A document's topics are listed in `pairs`, topic << shift | n_dk, after a head with their number. A token refers to its
topic by its position (`slot`) among them, so nothing is searched. Topics that no token has any more leave holes, which
`compact` removes from time to time.

A token without a topic (-1) is in no count; `gibbs` draws its first topic by the same rule.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from mpips import kernel

LANES = 64
GROUP = 32
"""Number of topics that share one mark of changed counts."""
AHEAD = 6
"""Number of tokens by which documents are prefetched."""

F4 = NDArray[np.float32]
I4 = NDArray[np.int32]
I8 = NDArray[np.int64]
U8 = NDArray[np.uint64]


# --- Random numbers ------------------------------------------------------------------------------------------------


@kernel("u8(u8[::1])", inline=True)
def draw(rng: U8) -> Any:
    """Draw 64 random bits: xoroshiro128+ (Blackman and Vigna 2018). rng: u8[2], not both 0."""
    a, b = rng[0], rng[1]
    bits = a + b
    b ^= a
    rng[0] = ((a << np.uint64(24)) | (a >> np.uint64(40))) ^ b ^ (b << np.uint64(16))
    rng[1] = (b << np.uint64(37)) | (b >> np.uint64(27))
    return bits


@kernel("f4(u8)", inline=True)
def unit(bits: Any) -> Any:
    """Return a number in [0, 1) by the upper 24 bits."""
    return np.float32(np.int64(bits >> np.uint64(40))) * np.float32(2.0**-24)


@kernel("i8(u8, i8)", inline=True)
def below(bits: Any, n: int) -> Any:
    """Return a number in [0, n), n < 2**32, by the lower 32 bits."""
    return np.int64(((bits & np.uint64(0xFFFFFFFF)) * np.uint64(n)) >> np.uint64(32))


def _prefetch(typingctx: Any, array: Any, index: Any) -> Any:
    """Prefetch array[index] into the cache, for writing."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        address = builder.bitcast(builder.gep(data, [arguments[1]]), ir.IntType(8).as_pointer())
        number = ir.IntType(32)
        wanted = ir.FunctionType(ir.VoidType(), [address.type, number, number, number])
        function = builder.module.declare_intrinsic("llvm.prefetch", [address.type], wanted)
        builder.call(function, [address, *(ir.Constant(number, each) for each in (1, 3, 1))])
        return context.get_dummy_value()

    return types.void(array, types.int64), generate


prefetch: Any = intrinsic(_prefetch)


# --- A block, word by word -----------------------------------------------------------------------------------------


@kernel("void(i8[::1], i4[::1], i8[::1], i4[::1], i4[::1])")
def by_word(ptr: I8, words: I4, starts: I8, order: I4, docs: I4) -> None:
    """Fill order[i], the place of the i-th token by word, and docs[i], its document; starts: i8[V+1], by word."""
    at = starts.copy()
    for d in range(len(ptr) - 1):
        for i in range(ptr[d], ptr[d + 1]):
            j = at[words[i]]
            at[words[i]] = j + 1
            order[j] = i
            docs[j] = d


@kernel(*(f"void(i8[::1], i4[::1], i8, i8, {t}[::1], i4[::1])" for t in ("u4", "u8")))
def fill_pairs(ptr: I8, z: I4, topics: int, shift: int, pairs: Any, slots: I4) -> None:
    """Fill the pairs of all documents, and the slot of each token: -1 for those without a topic."""
    place = np.full(topics, -1, np.int32)
    one = np.uint64(1)
    for d in range(len(ptr) - 1):
        head = ptr[d] + d
        mine = pairs[head + 1 : ptr[d + 1] + d + 1]
        n = 0
        for i in range(ptr[d], ptr[d + 1]):
            slots[i] = -1
            if z[i] >= 0:
                k = z[i]
                if place[k] < 0:
                    place[k] = n
                    mine[n] = np.uint64(k) << np.uint64(shift)
                    n += 1
                slots[i] = place[k]
                mine[place[k]] = np.uint64(mine[place[k]]) + one
        pairs[head] = n
        for j in range(n):
            place[np.uint64(mine[j]) >> np.uint64(shift)] = -1


@kernel(*(f"void(i8[::1], {t}[::1], i8, i4[::1], i4[::1])" for t in ("u4", "u8")))
def compact(ptr: I8, pairs: Any, shift: int, heads: I4, slots: I4) -> None:
    """Close the holes among the pairs."""
    mask = (np.uint64(1) << np.uint64(shift)) - np.uint64(1)
    moved = np.empty(len(pairs), np.int32)
    for d in range(len(ptr) - 1):
        head = ptr[d] + d
        kept = 0
        for j in range(np.int64(pairs[head])):
            pair = pairs[head + 1 + j]
            if np.uint64(pair) & mask != np.uint64(0):
                moved[head + 1 + j] = kept
                pairs[head + 1 + kept] = pair
                kept += 1
        pairs[head] = kept
    for i in range(len(slots)):
        if slots[i] >= 0:
            slots[i] = moved[heads[i] + 1 + slots[i]]


@kernel(*(f"void({t}[::1], i8, i4[::1], i4[::1], i4[::1], i4[::1])" for t in ("u4", "u8")))
def topics_of(pairs: Any, shift: int, heads: I4, slots: I4, order: I4, z: I4) -> None:
    """Fill the topics of the tokens in the order of the documents."""
    for i in range(len(order)):
        topic: Any = -1
        if slots[i] >= 0:
            topic = np.int64(np.uint64(pairs[heads[i] + 1 + slots[i]]) >> np.uint64(shift))
        z[order[i]] = topic


@kernel("i8(i8, i4[::1], u1[::1], u8[::1], i4[::1], i8)")
def take_changes(first: int, moved: I4, marks: NDArray[np.uint8], keys: U8, changes: I4, count: int) -> int:
    """Append the changes of a row with the first key `first`, and reset them; return the total number of changes.

    moved: i4[K]; marks[g] is not 0 if any of the g-th GROUP of these has moved.
    """
    for g in range(len(marks)):
        if marks[g] != 0:
            marks[g] = 0
            for k in range(g * GROUP, min((g + 1) * GROUP, len(moved))):
                if moved[k] != 0:
                    keys[count] = np.uint64(first + k)
                    changes[count] = moved[k]
                    moved[k] = 0
                    count += 1
    return count


# --- Gibbs ---------------------------------------------------------------------------------------------------------


@kernel("void(i4[::1], f4, f4[::1], f4[::1])")
def weigh(row: I4, beta: Any, inverse: F4, q: F4) -> None:
    """Fill q of a word."""
    for k in range(len(row)):
        q[k] = (np.float32(row[k]) + beta) * inverse[k]


@kernel("f4(f4[::1], f4[::1], f4[::1])")
def sum_lanes(alpha: F4, q: F4, lanes: F4) -> Any:
    """Fill the partial sums of a_k q_k; return their sum."""
    for j in range(LANES):
        lanes[j] = 0.0
    whole = len(q) // LANES * LANES
    for base in range(0, whole, LANES):
        a, b = alpha[base : base + LANES], q[base : base + LANES]
        for j in range(LANES):
            lanes[j] += a[j] * b[j]
    for k in range(whole, len(q)):
        lanes[k - whole] += alpha[k] * q[k]
    total = np.float32(0)
    for j in range(LANES):
        total += lanes[j]
    return total


@kernel("i8(f4, f4[::1], f4[::1], f4[::1])")
def find_topic(u: Any, alpha: F4, q: F4, lanes: F4) -> Any:
    """Return the topic at `u`, from 0 to the sum of all a_k q_k."""
    lane, topics = 0, len(q)
    while lane + 8 < min(LANES, topics):
        some = lanes[lane : lane + 8]
        s = ((some[0] + some[1]) + (some[2] + some[3])) + ((some[4] + some[5]) + (some[6] + some[7]))
        if u < s:
            break
        u -= s
        lane += 8
    while lane + 1 < min(LANES, topics) and u >= lanes[lane]:
        u -= lanes[lane]
        lane += 1
    k = lane
    while k + LANES < topics:
        u -= alpha[k] * q[k]
        if u < 0.0:
            break
        k += LANES
    return k


_TOKENS = "i4[::1], i4[::1], {t}[::1], i8, i8"
COUNTS = "i4[::1], i8[::1], f4[::1], f8, f8, u8[::1]"


@kernel(
    *(f"i8(i8, i8, i8[::1], {_TOKENS.format(t=t)}, {COUNTS}, b1, u8[::1], i4[::1])" for t in ("u4", "u8"))
)
def gibbs(
    first: int,
    last: int,
    starts: I8,
    heads: I4,
    slots: I4,
    pairs: Any,
    shift: int,
    longest: int,
    rows: I4,
    totals: I8,
    alpha: F4,
    beta: float,
    mass: float,
    rng: U8,
    fresh: bool,
    keys: U8,
    changes: I4,
) -> int:
    """Draw the topics of a block's tokens of the words first .. last - 1 from the exact conditional distribution.

    Args:
        first: the first word of the range.
        last: one more than the last.
        starts: i8[V+1], where the tokens of each word begin.
        heads: i4[tokens], by word: where the token's document begins in `pairs`.
        slots: i4[tokens], by word: its topic's position in the document.
        pairs: the topics of the documents; see the module.
        shift: the number of bits of n_dk in a pair.
        longest: the largest number of pairs of a document.
        rows: i4[(last - first) K], n_wk, updated in place.
        totals: i8[K], n_k, updated in place.
        alpha: f4[K].
        beta: b.
        mass: V b.
        rng: u8[2].
        fresh: draw only for tokens without a topic.
        keys: receives the keys w K + k of the changed counts n_wk, ascending; 2 entries per token.
        changes: receives the differences.

    Returns:
        The number of changes.
    """
    topics = len(totals)
    one, b, mass_b = np.float32(1.0), np.float32(beta), np.float32(mass)
    sh, one_more = np.uint64(shift), np.uint64(1)
    mask = (one_more << sh) - one_more
    inverse = np.empty(topics, np.float32)
    for j in range(topics):
        inverse[j] = one / (np.float32(totals[j]) + mass_b)
    q, lanes = np.empty(topics, np.float32), np.empty(LANES, np.float32)
    sums = np.empty(longest // 8 + 1, np.float32)
    moved, marks = np.zeros(topics, np.int32), np.zeros(topics // GROUP + 1, np.uint8)
    state = rng.copy()
    count, final = 0, len(heads) - 1
    for w in range(first, last):
        if starts[w] == starts[w + 1]:
            continue
        row = rows[(w - first) * topics : (w - first + 1) * topics]
        weigh(row, b, inverse, q)
        smooth = sum_lanes(alpha, q, lanes)
        for i in range(starts[w], starts[w + 1]):
            head = heads[i]
            ahead = heads[min(i + AHEAD, final)]
            prefetch(pairs, ahead)
            prefetch(pairs, ahead + 16)
            slot = slots[i]
            if fresh and slot >= 0:
                continue
            n = np.int64(pairs[head])
            mine = pairs[head + 1 : head + 2 + n]
            if slot >= 0:
                pair = np.uint64(mine[slot])
                mine[slot] = pair - one_more
                k = np.int64(pair >> sh)
                row[k] -= 1
                moved[k] -= 1
                marks[k // GROUP] = 1
                totals[k] -= 1
                inverse[k] = one / (np.float32(totals[k]) + mass_b)
                now = (np.float32(row[k]) + b) * inverse[k]
                step = alpha[k] * (now - q[k])
                q[k] = now
                lanes[k % LANES] += step
                smooth += step
            # The document's topics, eight at a time: n_dk q_k, added up.
            total = np.float32(0)
            j = 0
            while j + 8 <= n:
                a0, a1, a2, a3 = (
                    np.uint64(mine[j]),
                    np.uint64(mine[j + 1]),
                    np.uint64(mine[j + 2]),
                    np.uint64(mine[j + 3]),
                )
                a4, a5, a6, a7 = (
                    np.uint64(mine[j + 4]),
                    np.uint64(mine[j + 5]),
                    np.uint64(mine[j + 6]),
                    np.uint64(mine[j + 7]),
                )
                s0 = (
                    np.float32(np.int32(a0 & mask)) * q[a0 >> sh]
                    + np.float32(np.int32(a1 & mask)) * q[a1 >> sh]
                )
                s1 = (
                    np.float32(np.int32(a2 & mask)) * q[a2 >> sh]
                    + np.float32(np.int32(a3 & mask)) * q[a3 >> sh]
                )
                s2 = (
                    np.float32(np.int32(a4 & mask)) * q[a4 >> sh]
                    + np.float32(np.int32(a5 & mask)) * q[a5 >> sh]
                )
                s3 = (
                    np.float32(np.int32(a6 & mask)) * q[a6 >> sh]
                    + np.float32(np.int32(a7 & mask)) * q[a7 >> sh]
                )
                total += (s0 + s1) + (s2 + s3)
                sums[j >> 3] = total
                j += 8
            groups = j >> 3
            while j < n:
                a0 = np.uint64(mine[j])
                total += np.float32(np.int32(a0 & mask)) * q[a0 >> sh]
                j += 1
            u = unit(draw(state)) * (total + smooth)
            into: Any = -1
            if u < total:
                g = 0
                while g < groups and sums[g] <= u:
                    g += 1
                if g > 0:
                    u -= sums[g - 1]
                for j in range(g * 8, n):
                    a0 = np.uint64(mine[j])
                    if a0 & mask != np.uint64(0):
                        into = j
                        u -= np.float32(np.int32(a0 & mask)) * q[a0 >> sh]
                        if u < 0.0:
                            break
            if into < 0:
                # The topic is drawn by a_k q_k, or the sum has ended before u, by rounding.
                k = find_topic(max(u - total, np.float32(0)), alpha, q, lanes)
                wanted = np.uint64(k)
                hole: Any = -1
                for j in range(n):
                    a0 = np.uint64(mine[j])
                    into = max(into, j if a0 >> sh == wanted else -1)
                    hole = max(hole, j if a0 & mask == np.uint64(0) else -1)
                if into < 0:
                    into = hole
                    if hole < 0:
                        into = n
                        pairs[head] = n + 1
                    mine[into] = wanted << sh
            pair = np.uint64(mine[into])
            mine[into] = pair + one_more
            slots[i] = into
            k = np.int64(pair >> sh)
            row[k] += 1
            moved[k] += 1
            marks[k // GROUP] = 1
            totals[k] += 1
            inverse[k] = one / (np.float32(totals[k]) + mass_b)
            now = (np.float32(row[k]) + b) * inverse[k]
            step = alpha[k] * (now - q[k])
            q[k] = now
            lanes[k % LANES] += step
            smooth += step
        count = take_changes(w * topics, moved, marks, keys, changes, count)
    rng[0], rng[1] = state[0], state[1]
    return count

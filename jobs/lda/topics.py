"""The top words of topics, as a table and a picture, and their coherence.

Coherence is UMass (Mimno et al., EMNLP 2011): over pairs of a topic's top words, j before i,
sum log((D(i, j) + 1) / D(j)), D counting the documents of the training data that have the words.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import InputError, kernel, progress, replacing
from mpips.jobs.lda.corpus import Block

DRAWN = 20
"""Number of the largest topics that are drawn."""
COLUMNS = 2
"""Charts beside each other."""


# --- Top words -------------------------------------------------------------------------------------------------------


class Top(NamedTuple):
    """The most frequent words of each topic, in descending order; ties by ascending id."""

    ids: NDArray[np.int32]
    """i4[K, n]; -1: the topic has fewer words."""
    counts: NDArray[np.int32]
    """i4[K, n]: n_wk of these."""


@kernel("void(i4[::1], i4[:, ::1], i4[:, ::1], i4[:, ::1])")
def _offer(
    ids: NDArray[np.int32], rows: NDArray[np.int32], best: NDArray[np.int32], counts: NDArray[np.int32]
) -> None:
    n = best.shape[1]
    for i in range(ids.shape[0]):
        for k in range(rows.shape[1]):
            times = rows[i, k]
            if (
                times <= 0
                or times < counts[k, n - 1]
                or (times == counts[k, n - 1] and ids[i] > best[k, n - 1])
            ):
                continue
            at = n - 1
            while at > 0 and (
                times > counts[k, at - 1] or (times == counts[k, at - 1] and ids[i] < best[k, at - 1])
            ):
                best[k, at], counts[k, at] = best[k, at - 1], counts[k, at - 1]
                at -= 1
            best[k, at], counts[k, at] = ids[i], times


def no_words(topics: int, n: int) -> Top:
    """Return an empty `Top`, to which words are `offer`ed."""
    return Top(np.full((topics, n), -1, np.int32), np.zeros((topics, n), np.int32))


def offer(top: Top, ids: NDArray[np.int32], rows: NDArray[np.int32]) -> None:
    """Insert words, i4[m], into the top, in place, if their counts, i4[m, K], are high enough; each word once."""
    _offer(np.ascontiguousarray(ids, np.int32), np.ascontiguousarray(rows, np.int32), *top)


def named(ids: Sequence[int], words: Sequence[str] | None) -> list[str]:
    """Return words by their ids, those below 0 left out; `#17` where they are not known."""
    return [f"#{word}" if words is None else words[word] for word in ids if word >= 0]


def largest(n_k: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the topics by size, the largest first; ties in ascending order."""
    return np.argsort(-n_k, kind="stable")


def table(
    top: Top,
    n_k: NDArray[np.int64],
    words: Sequence[str] | None,
    coherence: NDArray[np.float64] | None = None,
) -> str:
    """Return a text of a line or two per topic, the largest first: number, share of tokens, coherence, top words."""
    tokens = max(int(n_k.sum()), 1)
    lines = ["topic   share  " + ("coherence  " if coherence is not None else "") + "top words"]
    for k in largest(n_k).tolist():
        head = f"{k:5d}  {100.0 * n_k[k] / tokens:5.1f} %  "
        if coherence is not None:
            head += f"{coherence[k]:9.1f}  "
        text = " ".join(named(top.ids[k].tolist(), words)) or "(none)"
        lines += textwrap.wrap(
            text, 120, initial_indent=head, subsequent_indent=" " * len(head), break_on_hyphens=False
        )
    return "\n".join(lines)


def draw(path: Path, top: Top, n_k: NDArray[np.int64], words: Sequence[str] | None) -> None:
    """Write an SVG picture: a bar chart of the top words of each of the largest topics.

    Raises:
        InputError: the file's name does not end in .svg.
        OSError: it cannot be written.
    """
    # The templates of charts are loaded only where a picture is drawn.
    from mpips import charts

    if path.suffix.lower() != ".svg":
        raise InputError(f"{path}: cannot be written: a picture's name must end in .svg")
    tokens = max(int(n_k.sum()), 1)
    panels = []
    for k in largest(n_k)[:DRAWN].tolist():
        names = named(top.ids[k].tolist(), words)
        shares = (top.counts[k, : len(names)] / max(int(n_k[k]), 1)).tolist()
        rows = [
            charts.Bar(name, [charts.BarPart(part, "busy")], progress.share(part))
            for name, part in zip(names, shares, strict=True)
        ]
        title = f"topic {k}, {progress.share(n_k[k] / tokens)} of tokens"
        if rows:
            panels.append((title, charts.bars(rows, label=f"top words of topic {k}", show=progress.share)))
    with replacing(path, "w") as file:
        file.write(charts.tiled(panels, COLUMNS))


# --- Coherence -------------------------------------------------------------------------------------------------------


@kernel("void(i8[::1], i4[::1], i4[::1], i8[::1], i4[::1], i8[:, :, ::1])")
def _cooccurrence(
    ptr: NDArray[np.int64],
    words: NDArray[np.int32],
    place: NDArray[np.int32],
    begins: NDArray[np.int64],
    uses: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> None:
    topics, n = counts.shape[0], counts.shape[1]
    seen = np.full(begins.shape[0], -1, np.int64)
    masks, touched = np.zeros(topics, np.uint64), np.empty(topics, np.int64)
    for d in range(ptr.shape[0] - 1):
        size = 0
        for i in range(ptr[d], ptr[d + 1]):
            at = place[words[i]]
            if at < 0 or seen[at] == d:
                continue
            seen[at] = d
            for use in uses[begins[at] : begins[at + 1]]:
                k, rank = use // n, use % n
                if masks[k] == np.uint64(0):
                    touched[size] = k
                    size += 1
                masks[k] |= np.uint64(1) << np.uint64(rank)
        for k in touched[:size]:
            for i in range(n):
                if masks[k] >> np.uint64(i) & np.uint64(1):
                    for j in range(i + 1):
                        counts[k, i, j] += np.int64(masks[k] >> np.uint64(j) & np.uint64(1))
            masks[k] = np.uint64(0)


def cooccurrence(block: Block, top: NDArray[np.int32], vocabulary: int) -> NDArray[np.int64]:
    """Count the documents that have two of a topic's top words, i8[K, n, n] for j <= i; sum it over all blocks.

    Args:
        block: documents of the training data, words by their ids.
        top: i4[K, n], n at most 64: the ids of each topic's top words, best first; -1: it has fewer.
        vocabulary: V.
    """
    topics, n = top.shape
    if n > 64:
        raise ValueError(f"{n} top words of a topic; coherence takes at most 64")
    flat = top.reshape(-1)
    uses = np.flatnonzero(flat >= 0)
    uses = uses[np.argsort(flat[uses], kind="stable")]
    ids, begins = np.unique(flat[uses], return_index=True)
    place = np.full(vocabulary, -1, np.int32)
    place[ids] = np.arange(len(ids), dtype=np.int32)
    counts = np.zeros((topics, n, n), np.int64)
    begins = np.append(begins, len(uses)).astype(np.int64)
    _cooccurrence(block.ptr, block.words, place, begins, uses.astype(np.int32), counts)
    return counts


def umass(counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return each topic's UMass coherence, f8[K], of `cooccurrence` over all documents; at most 0, higher is better.

    Top words without documents are left out.
    """
    single = np.diagonal(counts, axis1=1, axis2=2)
    n = counts.shape[1]
    pair = np.tri(n, k=-1, dtype=bool) & (single[:, :, None] > 0) & (single[:, None, :] > 0)
    terms = np.log((counts + 1.0) / np.maximum(single, 1)[:, None, :])
    coherence: NDArray[np.float64] = np.where(pair, terms, 0.0).sum(axis=(1, 2))
    return coherence

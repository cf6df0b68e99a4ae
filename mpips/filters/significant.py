"""The significantly-modified filter: a change is sent once it is large enough (paper, section 3.6).

Additive changes can be sent together. A row is held back while its largest number, summed with what was held back
before, is at most Delta; then the sum is sent. So each number at the servers differs at any time by at most Delta per
worker from its value without the filter. No change is lost: held rows are part of the state, hence of checkpoints, and
a flush sends them. With Delta_t = threshold / t the difference tends to 0 for keys that are pushed again and again (the
theory of the companion paper requires O(1/t)).

Held rows are kept sorted by key. Each message merges two sorted lists, once to classify the rows and once to write
them, so that memory is proportional to the rows. Sums of zero are dropped.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mpips.errors import InputError
from mpips.filters.filter import About, Coder, Content, State, filter_
from mpips.filters.held_rows import (
    HOLD,
    SEND,
    Rows,
    applies,
    as_contiguous,
    classify,
    decode_unchanged,
    has_rows,
    keys_of,
    merge,
)
from mpips.keys import KEY64, KeyArray, is_wide, ranked, upper

Held = tuple[KeyArray, Rows]


@dataclass(frozen=True)
class Significant:
    """Settings: which changes are held back."""

    threshold: float = field(metadata={"above": 0, "at_most": 1e300})
    """Delta: a row is held back while none of its numbers is larger."""
    decay: Literal["constant", "inverse"] = "constant"
    """Delta is constant, or divided by the number of messages to a server."""
    vectors: tuple[str, ...] = ()
    """Vectors that it is applied to; none: all."""


@filter_("significant", Significant)
def significant(settings: Significant) -> Coder:
    """Return the coder that holds back small changes until their sum is large.

    It is applied to additive pushes only (About.sums). Its state has "count", i8[1]: the number of messages; and, if
    rows are held, "keys", u64[m], and "rows", [m, width] of the vector's type. A flush sends all held rows of the
    message's range.
    """

    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        if not about.sums or not applies(settings.vectors, about):
            return state, content
        if about.flush:
            return release_held(state, content, about)
        if not has_rows(content):
            return state, content
        count = 1 + (int(state["count"][0]) if "count" in state else 0)
        threshold = settings.threshold / count if settings.decay == "inverse" else settings.threshold
        held = held_of(state, content, about)
        content, held = split(content, held, round_to_type(threshold, content.values), about)
        return {"count": np.array([count]), **state_of(held)}, content

    return Coder(encode, decode_unchanged, drops=True)


def release_held(state: State, content: Content, about: About) -> tuple[State, Content]:
    """Add all held rows of a message's range to it; the message may have rows of its own, or none."""
    if "keys" not in state or about.range.empty:
        return state, content
    if not len(content.values):
        content = content._replace(keys=state["keys"][:0], values=state["rows"][:0])
    keys, rows = held_of(state, content, about)
    first = int(np.searchsorted(upper(keys), np.uint64(about.range.begin)))
    last = int(np.searchsorted(upper(keys), np.uint64(about.range.end - 1), side="right"))
    content, _ = split(content, (keys[first:last], rows[first:last]), 0.0, about)
    outside = np.concatenate((keys[:first], keys[last:])), np.concatenate((rows[:first], rows[last:]))
    return {"count": state["count"], **state_of(outside)}, content


def state_of(held: Held) -> State:
    """Return the state's arrays for held rows; none if there are none."""
    return {"keys": held[0], "rows": held[1]} if len(held[0]) else {}


def held_of(state: State, content: Content, about: About) -> Held:
    """Return the keys and rows that a state holds back; if there are none, empty ones of the content's type.

    Raises:
        InputError: the content's rows cannot be added to them.
    """
    if "keys" not in state:
        return np.empty(0, KEY64 if content.keys is None else content.keys.dtype), content.values[:0]
    keys, rows, values = state["keys"], state["rows"], content.values
    if values.dtype != rows.dtype or values.shape[1:] != rows.shape[1:]:
        raise InputError(
            f"filter significant: a push to {about.vector!r} has rows of {values.shape[-1]} {values.dtype}, the rows "
            f"held back are of {rows.shape[1]} {rows.dtype}"
        )
    return as_contiguous(keys), as_contiguous(rows)


def round_to_type(threshold: float, values: Rows) -> float:
    """Round a threshold to the values' type, so that a float32 of 0.1 is not larger than 0.1."""
    if values.dtype != np.float32:
        return threshold
    return float(np.float32(min(threshold, float(np.finfo(np.float32).max))))


def split(content: Content, held: Held, threshold: float, about: About) -> tuple[Content, Held]:
    """Add held rows to a message's rows, and split the sums into those to send and those to hold."""
    rows, keys = as_contiguous(content.values), keys_of(content, about)
    if is_wide(keys):
        # Kernels merge the places of the keys in the union of both lists.
        union, (ranks, held_ranks) = ranked(keys, held[0])
        made, (held_keys, held_rows) = split(
            content._replace(keys=ranks), (held_ranks, held[1]), threshold, about
        )
        listed = content.keys if made.keys is ranks else union[made.keys]
        return made._replace(keys=listed), (union[held_keys], held_rows)
    classes = np.full(len(rows), SEND, np.uint8)
    send, hold, in_both = len(rows), 0, 0
    if not about.flush:
        send, hold, in_both = classify(keys, rows, *held, threshold, classes)
    if send == len(rows) and not len(held[0]):
        return content, held
    total = send + hold + len(held[0]) - in_both
    merged = np.empty(total + 1, np.uint64), np.empty((total + 1, rows.shape[1]), rows.dtype)
    sent, end = merge(keys, rows, *held, classes, send, SEND if about.flush else HOLD, *merged)
    # If as many keys are sent as were given, they are the same: keep the list itself, whose signature is cached.
    listed = content.keys if sent == len(rows) else merged[0][:sent]
    held = merged[0][sent:end], merged[1][sent:end]
    # A view would keep the memory of all rows.
    if 2 * (end - sent) < total:
        held = held[0].copy(), held[1].copy()
    return content._replace(keys=listed, values=merged[1][:sent]), held

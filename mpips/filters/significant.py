"""Significantly modified: a change travels when it has grown large enough (paper, section 5.1).

Changes that add up need not travel one by one. A row is held back while its largest number, all that was held back
before included, is at most Delta; then it is sent whole. So each number at the servers is at no time further than Delta
a worker from what it would have been, and nothing is lost: what is held is part of the state, hence of a checkpoint,
and a flush sends it. With Delta_t = threshold / t the distance goes to 0 for what is pushed again and again (the
companion's theory asks for O(1/t)).

Held rows are a sorted list beside its keys. Each message is a merge of two such lists, once to judge and once to
write, so that no more memory is taken than there are rows. A sum of zero is forgotten: there is nothing to send.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from mpips.errors import InputError
from mpips.filters.filter import About, Coder, Content, State, filter_
from mpips.filters.held import (
    HOLD,
    SEND,
    Keys,
    Rows,
    applies,
    are_rows,
    as_it_came,
    judge,
    keys_of,
    merge,
    plain,
)

Held = tuple[Keys, Rows]


@dataclass(frozen=True)
class Significant:
    """Which changes are held back."""

    threshold: float = field(metadata={"above": 0})
    """Delta: a row is held back while none of its numbers is larger."""
    decay: Literal["constant", "inverse"] = "constant"
    """Delta stays what it is, or is divided by the count of messages to a server."""
    vectors: tuple[str, ...] = ()
    """Vectors that it is for; none: all."""


@filter_("significant", Significant)
def significant(settings: Significant) -> Coder:
    """Make the filter that holds small changes back, until they have added up to large ones.

    It leaves alone what does not add up (About.sums). Its state has "count", i8[1]: the messages that it has judged;
    and if anything is held "keys", u64[m], and "rows", [m, width] of the vector's type: the changes held back. A
    flush sends those within the message's range, and judges nothing.
    """

    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        if not about.sums or not applies(settings.vectors, about):
            return state, content
        if about.flush:
            return release(state, content, about)
        if not are_rows(content):
            return state, content
        count = 1 + (int(state["count"][0]) if "count" in state else 0)
        threshold = settings.threshold / count if settings.decay == "inverse" else settings.threshold
        held = held_of(state, content, about)
        content, held = split(content, held, rounded(threshold, content.values), about)
        return {"count": np.array([count]), **named(held)}, content

    return Coder(encode, as_it_came, drops=True)


def release(state: State, content: Content, about: About) -> tuple[State, Content]:
    """Send with a message all that is held within its range; it may have rows of its own, or none."""
    if "keys" not in state or about.range.empty:
        return state, content
    if not len(content.values):
        content = content._replace(keys=state["keys"][:0], values=state["rows"][:0])
    keys, rows = held_of(state, content, about)
    first = int(np.searchsorted(keys, np.uint64(about.range.begin)))
    last = int(np.searchsorted(keys, np.uint64(about.range.end - 1), side="right"))
    content, _ = split(content, (keys[first:last], rows[first:last]), 0.0, about)
    outside = np.concatenate((keys[:first], keys[last:])), np.concatenate((rows[:first], rows[last:]))
    return {"count": state["count"], **named(outside)}, content


def named(held: Held) -> State:
    """Name what is held for the state; nothing if it is none."""
    return {"keys": held[0], "rows": held[1]} if len(held[0]) else {}


def held_of(state: State, content: Content, about: About) -> Held:
    """Return the keys and rows that a state holds back, none of the content's type if there are none.

    Raises:
        InputError: the content's rows cannot be added to them.
    """
    if "keys" not in state:
        return np.empty(0, np.uint64), content.values[:0]
    keys, rows, values = state["keys"], state["rows"], content.values
    if values.dtype != rows.dtype or values.shape[1:] != rows.shape[1:]:
        raise InputError(
            f"filter significant: a push to {about.vector!r} has rows of {values.shape[-1]} {values.dtype}, and what "
            f"is held back has rows of {rows.shape[1]} {rows.dtype}"
        )
    return plain(keys), plain(rows)


def rounded(threshold: float, values: Rows) -> float:
    """Round a threshold as the values are rounded, so that a float32 of 0.1 is not larger than 0.1."""
    if values.dtype != np.float32:
        return threshold
    return float(np.float32(min(threshold, float(np.finfo(np.float32).max))))


def split(content: Content, held: Held, threshold: float, about: About) -> tuple[Content, Held]:
    """Add what is held to a content's rows, and part the sums into those to be sent and those to be held."""
    rows, keys = plain(content.values), keys_of(content, about)
    verdicts = np.full(len(rows), SEND, np.uint8)
    send, hold, in_both = len(rows), 0, 0
    if not about.flush:
        send, hold, in_both = judge(keys, rows, *held, threshold, verdicts)
    if send == len(rows) and not len(held[0]):
        return content, held
    total = send + hold + len(held[0]) - in_both
    both = np.empty(total + 1, np.uint64), np.empty((total + 1, rows.shape[1]), rows.dtype)
    sent, end = merge(keys, rows, *held, verdicts, send, SEND if about.flush else HOLD, *both)
    # As many as came are those that came: with the list itself, the servers know it by its signature.
    listed = content.keys if sent == len(rows) else both[0][:sent]
    held = both[0][sent:end], both[1][sent:end]
    if 2 * (end - sent) < total:  # a view would keep all of it
        held = held[0].copy(), held[1].copy()
    return content._replace(keys=listed, values=both[1][:sent]), held

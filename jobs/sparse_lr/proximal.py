"""The server's half of the delayed block proximal method: an update, and the scheduler's calls between passes.

The update has three phases, which the scheduler sets (`settings["phase"]`):

    start   rows: `column_sums`          reply: radius, or what stands for none (`kernels.NEAR` ...)
    step    rows: (g, U) of a block      reply: (w, radius, or 0 when dropped)
    reset   rows: g at one fixed w       reply: radius, or what stands for none

Rows of width 0 ask for the radius, after a mixture; a weight that it made non-zero is active again. Without the KKT
filter (`settings["kkt"]`) all features start active, and none is ever dropped.

Replies must arrive as they are: F is told from the workers' margins and the servers' weights, and a search along steps
that are not the same for both would follow their difference. Rows of a block may be rounded on their way: that makes a
step somewhat worse, no more. Those of a start or reset decide what is dropped for good, and when to stop.

An epoch is what lies between two resets; for the features that were active at its start, the segment notes w at the
starts of the last passes, over whose steps the scheduler searches (`control`).
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.exact import ExactSum
from mpips.jobs.sparse_lr import kernels
from mpips.jobs.sparse_lr.control import MEMORY
from mpips.store import Segment
from mpips.update import Column, VectorSpec, call, update

Array = NDArray[Any]
HISTORY = "history"


def _columns(spec: VectorSpec) -> dict[str, Column]:
    return {
        "radius": Column("float32"),
        "scale": Column("float32"),
        "active": Column("int8"),
    }


def _any_width(spec: VectorSpec) -> Column:
    return Column("float32", 0)


@update("block_proximal", columns=_columns, push_row=_any_width, reply_row=_any_width, exact_replies=True)
def block_proximal(
    values: Array, state: dict[str, Array], slots: NDArray[np.int32], rows: Array, settings: dict[str, Any]
) -> Array:
    """Take the step of Algorithm 3 for the features of a block, or start or reset them; see the module."""
    w, d = values.reshape(-1), state["radius"].reshape(-1)
    scale, active = state["scale"].reshape(-1), state["active"].reshape(-1).view(np.bool_)
    l1, phase, kkt = float(settings["l1"]), settings["phase"], bool(settings["kkt"])
    threshold = float(settings["threshold"]) if kkt else np.inf
    if phase == "step" and rows.shape[1]:
        reply = np.empty((len(slots), 2), np.float32)
        worst = kernels.prox_step(slots, rows, l1, threshold, w, d, scale, active, reply)
        settings["violation"] = max(float(settings["violation"]), worst)
        return reply
    radius = np.empty(len(slots), np.float32)
    if rows.shape[1] == 0:
        active[slots] |= w[slots] != 0.0
        radius[:] = np.where(active[slots], d[slots], 0.0)
    elif phase == "start":
        if rows.shape[1] == 2:  # all values are one, so the entries are their own sums of squares
            count = rows.sum(axis=1, keepdims=True)
            rows = np.hstack([count, count, rows])
        kernels.start_keys(slots, rows, l1, kkt, d, scale, active, radius)
    else:
        far = float(settings["far"])
        largest, returned = kernels.reset_keys(
            slots, rows.reshape(-1), l1, threshold, far, w, d, active, radius
        )
        settings["largest"] = max(float(settings["largest"]), largest)
        settings["returned"] = float(settings["returned"]) + returned
    return radius[:, None]


@call("begin_phase")
def begin_phase(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Set the phase of the pushes that follow, with its threshold."""
    segment.settings.update(args)
    segment.settings.update(violation=0.0, largest=0.0, returned=0.0)
    return {}


@call("end_phase", reads=True)
def end_phase(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Report what the pushes of the phase came to."""
    return {name: segment.settings[name] for name in ("violation", "largest", "returned")}


# What is noted is kept pass by pass, so that the kernels find each pass's weights in one run; the segment is given the
# transposed view, a row for each slot.


def _history(segment: Segment) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Give the noted slots, and their weights at the starts of the last passes: f8[passes, slots]."""
    slots, rows = segment.notes[HISTORY]
    return slots, np.ascontiguousarray(rows.T)


@call("begin_epoch")
def begin_epoch(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Note w of the features that are active now; give |w|_1."""
    slots = np.flatnonzero(segment.state["active"][: len(segment)]).astype(np.int32)
    segment.notes[HISTORY] = (slots, segment.values[slots])
    return norm(segment, args)


@call("sizes")
def sizes(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Note w after a pass; give the l1 term and its slopes along the noted passes, as exact sums."""
    slots, before = _history(segment)
    history = np.empty((len(before) + 1, len(slots)))
    history[:-1] = before
    history[-1] = segment.values[slots, 0]
    segment.notes[HISTORY] = (slots, history.T)
    terms = np.empty_like(history)
    kernels.size_terms(history, terms)
    return {"sums": [ExactSum(row).to_list() for row in terms]} | end_phase(segment, {})


@call("mixed_sizes", reads=True)
def mixed_sizes(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Give the l1 term of every mixture of the noted weights, as exact sums."""
    slots, history = _history(segment)
    mixtures = np.array(args["mixtures"]).reshape(-1, len(history))
    terms = np.empty((len(mixtures), len(slots)))
    kernels.mixed_sizes(history, mixtures, terms)
    return {"sums": [ExactSum(row).to_list() for row in terms]}


@call("mix")
def mix(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Set w to a mixture of the noted weights (or leave it), and forget what is too old; give the non-zeros."""
    slots, history = _history(segment)
    if args["mixture"] is not None:
        kernels.mix(history, np.array(args["mixture"]), history[-1])
        segment.values[slots, 0] = history[-1]
    active = segment.state["active"][slots, 0] != 0
    kept = history[-(1 if args["forget"] else MEMORY) :]
    live = active | (kept != 0.0).any(axis=0)  # the others weigh 0, and will until the next reset
    segment.notes[HISTORY] = (slots[live], kept[:, live].T)
    return {"nonzeros": int(np.count_nonzero(history[-1])), "active": int(np.count_nonzero(active))}


@call("norm", reads=True)
def norm(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Give |w|_1, as an exact sum, and the number of non-zeros."""
    values = segment.values[: len(segment)]
    return {
        "sums": [ExactSum(np.abs(values).reshape(-1)).to_list()],
        "nonzeros": int(np.count_nonzero(values)),
    }


def exact_total(replies: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Add the exact sums of all servers, term by term: the same bits however the keys are spread."""
    return np.array(
        [
            reduce(ExactSum.merge, map(ExactSum.from_list, terms)).value()
            for terms in zip(*(reply["sums"] for reply in replies), strict=True)
        ]
    )

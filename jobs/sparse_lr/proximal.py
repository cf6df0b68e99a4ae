"""The server's side of the delayed block proximal method: an update, and the scheduler's calls between passes.

The update has five phases, which the scheduler sets (`settings["phase"]`):

    start   rows: `column_sums`          reply: radius or code
    step    rows: (g, U) of a block      reply: (w, radius, or 0 when dropped)
            rows of width 3, or 1        reply: as "sum", or as "set": a local step
    reset   rows: g at one fixed w       reply: radius or code
    sum     any rows                     reply: their sum over the workers (`quadratic`)
    set     rows: each worker's share    reply: w, which is their sum from now on

The radius of an active feature is positive. A feature that is not active has a code instead (`kernels`): NEAR (0), its
gradient is computed at the next reset; FAR (-1), at the next full reset; NEVER (-2), not again.

A mixture is a linear combination of the weights at the starts of the last passes and now (`control`). After one, rows
of width 0 request the radius; a weight that became non-zero is active again. Without the KKT filter
(`settings["kkt"]`) all features start active, and none is ever dropped.

Replies must not be rounded: F is computed from the workers' margins and the servers' weights, and if their steps
differed, the search would be misled by the difference. Rows of a block may be rounded, which only makes a step less
accurate. Rows of a start or reset must be exact: they determine which features are dropped, and when to stop.

With `settings["exact"]` rows are float64, whose sums are exact (`exact_kernels`). A feature's `bounds` and `code`
are kept; at a start, and in a phase of its own, the reply is (radius or code, bounds):

    rebuild rows: of width 0             reply: (radius or code, bounds)

So a worker that joins later gets the same state as the others, and the changes of an interrupted pass are undone
(`undo`).

A period is the time between two resets. For the features that were active at its start, the segment saves w at the
starts of the last passes; the scheduler searches along the steps of these passes (`control`).
"""

from __future__ import annotations

from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips import Column, Segment, VectorSpec, call, exact_sums, update
from mpips.jobs.sparse_lr import exact_kernels, kernels, kkt_filter
from mpips.jobs.sparse_lr.control import MEMORY

Array = NDArray[Any]
HISTORY = "history"
BEFORE, EARLIER = "before", "earlier"
"""Names of the notes with the state before a pass or reset: radii and active features, and the history."""


def _columns(spec: VectorSpec) -> dict[str, Column]:
    more = {"code": Column("int8"), "bounds": Column("int32", 2)} if spec.settings.get("exact") else {}
    if spec.settings.get("overlap"):
        more |= {"before": Column("float64"), "visits": Column("int8")}
    return {
        "radius": Column("float32"),
        "scale": Column("float32"),
        "active": Column("int8"),
    } | more


def _pushed(spec: VectorSpec) -> Column:
    wide = spec.settings.get("exact") or spec.settings.get("wide")
    return Column("float64" if wide else "float32", 0)


def _replied(spec: VectorSpec) -> Column:
    return Column("float32", 0)


@update("block_proximal", columns=_columns, push_row=_pushed, reply_row=_replied, exact_replies=True)
def block_proximal(
    values: Array, state: dict[str, Array], slots: NDArray[np.int32], rows: Array, settings: dict[str, Any]
) -> Array:
    """Take the step of Algorithm 3 for the features of a block, or start or reset them; see the module."""
    phase, width = settings["phase"], rows.shape[1]
    if phase == "sum" or (phase == "step" and width == 3):
        return rows.astype(np.float32)
    w, d = values.reshape(-1), state["radius"].reshape(-1)
    if phase == "set" or (phase == "step" and width == 1):
        if "before" in state:
            # As a visit of the next pass: the report of the last one may still be under way.
            state["before"][slots, 0] = w[slots]
            state["visits"][slots, 0] ^= 1
        w[slots] = rows[:, 0].astype(np.float32)
        return w[slots].astype(np.float32)[:, None]
    scale, active = state["scale"].reshape(-1), state["active"].reshape(-1).view(np.bool_)
    l1, kkt = float(settings["l1"]), bool(settings["kkt"])
    threshold = float(settings["threshold"]) if kkt else np.inf
    if phase == "step" and width:
        reply = np.empty((len(slots), 2), np.float32)
        last = (
            (state["before"].reshape(-1), state["visits"].reshape(-1))
            if "before" in state
            else kkt_filter.ALONE
        )
        worst = kkt_filter.prox_step(slots, rows, l1, threshold, w, d, scale, active, reply, *last)
        settings["violation"] = max(float(settings["violation"]), worst)
        return reply
    radius = np.empty(len(slots), np.float32)
    if width == 0:
        active[slots] |= w[slots] != 0.0
        others = state["code"][slots, 0] if "code" in state else 0.0
        radius[:] = np.where(active[slots], d[slots], others)
    elif phase == "start":
        if "bounds" in state:
            rows = exact_kernels.start_sums(rows)
            state["bounds"][slots] = exact_kernels.bounds_of(rows)
        kkt_filter.start_keys(slots, rows, l1, kkt, d, scale, active, radius)
    else:
        far = float(settings["far"])
        largest, returned = kkt_filter.reset_keys(
            slots, rows.reshape(-1), l1, threshold, far, w, d, active, radius
        )
        settings["largest"] = max(float(settings["largest"]), largest)
        settings["returned"] = float(settings["returned"]) + returned
    if "code" in state and width:
        state["code"][slots, 0] = np.minimum(radius, 0.0)
    if "bounds" in state and phase in ("start", "rebuild"):
        return np.hstack([radius[:, None], state["bounds"][slots].astype(np.float32)])
    return radius[:, None]


@call("begin_phase")
def begin_phase(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Set the phase of the next pushes, with its threshold."""
    segment.settings.update(args)
    segment.settings.update(violation=0.0, largest=0.0, returned=0.0)
    if "visits" in segment.state:
        segment.state["visits"][: len(segment)] = 0
    return {}


@call("end_phase", reads=True)
def end_phase(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Return the results of the pushes of the phase."""
    return {name: segment.settings[name] for name in ("violation", "largest", "returned")}


# Saved weights are stored pass by pass, so that the kernels read those of a pass contiguously; the segment gets the
# transposed view, with a row for each slot.


def _history(segment: Segment) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Return the saved slots, and their weights at the starts of the last passes: f8[passes, slots]."""
    slots, rows = segment.notes[HISTORY]
    return slots, np.ascontiguousarray(rows.T)


@call("begin_period")
def begin_period(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Save w of the active features; return |w|_1."""
    slots = np.flatnonzero(segment.state["active"][: len(segment)]).astype(np.int32)
    segment.notes[HISTORY] = (slots, segment.values[slots])
    return norm(segment, args)


@call("sizes")
def sizes(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Save w after a pass; return the l1 term and its slopes along the saved passes, as exact sums."""
    slots, before = _history(segment)
    return _sizes(segment, slots, before, segment.values[slots, 0])


def _sizes(
    segment: Segment, slots: NDArray[np.int32], before: NDArray[np.float64], w: NDArray[np.float64]
) -> dict[str, Any]:
    before = before[-MEMORY:]
    history = np.empty((len(before) + 1, len(slots)))
    history[:-1] = before
    history[-1] = w
    segment.notes[HISTORY] = (slots, history.T)
    terms = np.empty_like(history)
    kernels.size_terms(history, terms)
    return {"sums": [exact_sums.ExactSum(row).to_list() for row in terms]} | end_phase(segment, {})


@call("sizes_meanwhile")
def sizes_meanwhile(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Do the same as `sizes` while the next pass runs, and set the threshold of the next pushes; also return non-zeros.

    args: `number`, the number of the pass since passes overlap. A feature that the next pass has visited already has
    one visit more, and its weight is in `before`. (A feature that was dropped has fewer; it weighs 0, also before.)
    """
    slots, before = _history(segment)
    active = segment.state["active"][slots, 0] != 0
    early = segment.state["visits"][slots, 0] != args["number"] % 2
    w = np.where(early, segment.state["before"][slots, 0], segment.values[slots, 0])
    found = _sizes(segment, slots, before, w)
    segment.settings.update(violation=0.0, threshold=args["threshold"])
    return found | {"nonzeros": int(np.count_nonzero(w)), "active": int(np.count_nonzero(active))}


@call("mixed_sizes", reads=True)
def mixed_sizes(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Return the l1 term of every mixture of the saved weights, as exact sums."""
    slots, history = _history(segment)
    mixtures = np.array(args["mixtures"]).reshape(-1, len(history))
    terms = np.empty((len(mixtures), len(slots)))
    kernels.mixed_sizes(history, mixtures, terms)
    return {"sums": [exact_sums.ExactSum(row).to_list() for row in terms]}


@call("mix")
def mix(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Set w to a mixture of the saved weights (or leave it), and drop states too old; return the non-zeros."""
    slots, history = _history(segment)
    if args["mixture"] is not None:
        kernels.mix(history, np.array(args["mixture"]), history[-1])
        segment.values[slots, 0] = history[-1]
    active = segment.state["active"][slots, 0] != 0
    kept = history[-(1 if args["forget"] else MEMORY) :]
    # The others weigh 0, and will until the next reset.
    live = active | (kept != 0.0).any(axis=0)
    segment.notes[HISTORY] = (slots[live], kept[:, live].T)
    return {"nonzeros": int(np.count_nonzero(history[-1])), "active": int(np.count_nonzero(active))}


@call("norm", reads=True)
def norm(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Return |w|_1, as an exact sum, and the number of non-zeros."""
    total, nonzeros = exact_sums.ExactSum(), 0
    for _, rows in segment.everything():
        total.add(np.abs(rows[""]))
        nonzeros += int(np.count_nonzero(rows[""]))
    return {"sums": [total.to_list()], "nonzeros": nonzeros}


# With exact sums only: the changes of a step in which a worker was lost are undone, and the weights at the starts of
# the last passes are returned to workers that recompute their margins.


_MARKED = ("radius", "active", "code")


@call("mark")
def mark(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Save the state for `undo` of the features that a pass can change: those of the period."""
    noted = segment.notes[HISTORY]
    segment.notes[BEFORE] = (noted[0], _marked(segment, noted[0]))
    # Never changed in place: `sizes` makes a new one.
    segment.notes[EARLIER] = noted
    return {}


@call("mark_all")
def mark_all(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Save the state for `undo` of all features before a reset; states that are already saved stay."""
    slots = np.arange(len(segment), dtype=np.int32)
    rows = _marked(segment, slots)
    before, noted = segment.notes[BEFORE]
    rows[before] = noted
    segment.notes[BEFORE] = (slots, rows)
    return {}


@call("unmark")
def unmark(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Drop the state for `undo`."""
    for name in (BEFORE, EARLIER):
        segment.notes.pop(name, None)
    return {}


def _marked(segment: Segment, slots: NDArray[np.int32]) -> NDArray[np.float64]:
    return np.column_stack([segment.state[name][slots, 0].astype(np.float64) for name in _MARKED])


@call("undo")
def undo(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Undo all changes since `mark`."""
    slots, rows = segment.notes[BEFORE]
    for name, column in zip(_MARKED, rows.T, strict=True):
        segment.state[name][slots, 0] = column
    segment.notes[HISTORY] = segment.notes[EARLIER]
    segment.values[: len(segment)] = 0.0
    return _select_weights(segment, -1)


@call("select_weights")
def select_weights(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Let pulls return the weights at the start of a saved pass, from 0 on (-1: now); return the number of passes."""
    return _select_weights(segment, int(args["at"]))


def _select_weights(segment: Segment, at: int) -> dict[str, Any]:
    slots, rows = segment.notes[HISTORY]
    segment.values[slots, 0] = rows[:, at]
    return {"noted": rows.shape[1]}


@call("tiny_features", reads=True)
def tiny_features(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Return the features that may matter but whose weights exceed float32: the first key, and the number."""
    slots = np.flatnonzero(segment.state["scale"][: len(segment), 0] >= kernels.OVERFLOWS)
    keys = segment.keys_of(slots.astype(np.int32)).tolist()
    return {"first": min(keys, default=None), "count": len(keys)}


@call("count", reads=True)
def count(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Count the active features."""
    return {"active": int(np.count_nonzero(segment.state["active"][: len(segment)]))}


def exact_total(replies: list[dict[str, Any]]) -> NDArray[np.float64]:
    """Add the exact sums of all servers, term by term: the same bits for any distribution of the keys."""
    return np.array(
        [
            reduce(exact_sums.ExactSum.merge, map(exact_sums.ExactSum.from_list, terms)).value()
            for terms in zip(*(reply["sums"] for reply in replies), strict=True)
        ]
    )

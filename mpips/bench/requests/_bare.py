"""The limit of a push or pull: the same bytes between the same ranks by mpi4py alone, with numpy's work for the update.

A round: each worker sends values, keys or one byte to every shard's server, which updates its array by numpy, sends
what was pushed on to the holder of the shard's copy, if there is one, and answers with a copy of its values or with one
byte. A holder of a copy does the same work, sends it on to the next, and answers with one byte. In a round of all
workers the server first sums their values; where mpips answers such rounds before their copies are made, so does it.

The messages use MPI.COMM_WORLD, which a run does not use otherwise: the van has its own communicator.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from time import perf_counter_ns
from typing import Any, NamedTuple

import numpy as np
from mpi4py import MPI
from numpy.typing import NDArray

KEYS, VALUES, REPLY, TAGS = range(4)
"""Tags of a stage, from its first tag on, and their number."""
Start = Callable[[], MPI.Request]
"""Starts a send or a receive."""
Values = NDArray[np.float32]


def send(array: NDArray[Any], rank: int, tag: int) -> Start:
    """Give a function that starts to send a contiguous array."""
    return partial(MPI.COMM_WORLD.Isend, [array.view(np.uint8), MPI.BYTE], rank, tag)


def receive(array: NDArray[Any], rank: int, tag: int) -> Start:
    """Give a function that starts to receive into a contiguous array."""
    return partial(MPI.COMM_WORLD.Irecv, [array.view(np.uint8), MPI.BYTE], rank, tag)


def waits(oversubscribed: bool) -> Callable[[list[MPI.Request]], object]:
    """Give a function that waits for all requests; with more ranks than cores it yields the processor."""
    return _yielding if oversubscribed else MPI.Request.Waitall


def _yielding(requests: list[MPI.Request]) -> None:
    while not MPI.Request.Testall(requests):
        os.sched_yield()


# --- The updates, as a numpy program would write them ----------------------------------------------------


class Work(NamedTuple):
    """An update by numpy: `apply(values, arrays, rows)`, with so many arrays like the values, for state and results."""

    arrays: int
    apply: Callable[[Values, Sequence[Values], Values], object]


def _add(values: Values, arrays: Sequence[Values], rows: Values) -> None:
    np.add(values, rows, values)


def _program(values: Values, arrays: Sequence[Values], rows: Values) -> None:
    (sums,) = arrays
    np.add(values, rows, sums)
    np.copyto(values, sums)


def _assign(values: Values, arrays: Sequence[Values], rows: Values) -> None:
    np.copyto(values, rows)


def _sgd(values: Values, arrays: Sequence[Values], rows: Values) -> None:
    (step,) = arrays
    np.multiply(rows, 0.1, step)
    np.subtract(values, step, values)


def _adagrad(values: Values, arrays: Sequence[Values], rows: Values) -> None:
    norms, step = arrays
    _norms(norms, step, rows)
    np.add(norms, 1.0, step)
    np.multiply(step, 10.0, step)
    np.multiply(values, step, values)
    np.subtract(values, rows, values)
    np.divide(values, step, values)


def _ftrl(values: Values, arrays: Sequence[Values], rows: Values) -> None:
    duals, norms, before, step = arrays
    np.copyto(before, norms)
    _norms(norms, step, rows)
    np.subtract(norms, before, before)
    np.multiply(before, 10.0, before)
    np.multiply(before, values, before)
    np.add(duals, rows, duals)
    np.subtract(duals, before, duals)
    np.add(norms, 1.0, step)
    np.multiply(step, -10.0, step)
    np.divide(duals, step, values)


def _adam(values: Values, arrays: Sequence[Values], rows: Values) -> None:
    # The number of steps is that of the first row: here all rows are pushed together.
    means, squares, steps, step, square = arrays
    steps += 1
    t = float(steps.flat[0])
    np.multiply(means, 0.9, means)
    np.multiply(rows, 0.1, step)
    np.add(means, step, means)
    np.multiply(squares, 0.999, squares)
    np.multiply(rows, rows, step)
    np.multiply(step, 0.001, step)
    np.add(squares, step, squares)
    np.divide(squares, 1 - 0.999**t, square)
    np.sqrt(square, square)
    np.add(square, 1e-8, square)
    np.multiply(means, 0.001 / (1 - 0.9**t), step)
    np.divide(step, square, step)
    np.subtract(values, step, values)


def _norms(norms: Values, step: Values, rows: Values) -> None:
    """Set norms = sqrt(norms^2 + rows^2)."""
    np.multiply(norms, norms, norms)
    np.multiply(rows, rows, step)
    np.add(norms, step, norms)
    np.sqrt(norms, norms)


UPDATES = {
    "add": Work(0, _add),
    "assign": Work(0, _assign),
    "sgd": Work(1, _sgd),
    "adagrad": Work(2, _adagrad),
    "ftrl": Work(4, _ftrl),
    "adam": Work(5, _adam),
    "program": Work(1, _program),
    "kernel": Work(0, _add),
}
"""The work of the built-in updates with their default settings, without regularisation, and of a program's updates."""


# --- The worker ------------------------------------------------------------------------------------------


def ask(
    servers: Sequence[int],
    cuts: Sequence[int],
    tags: Sequence[int],
    keys: NDArray[np.uint64] | None,
    rows: Values | None,
    out: Values | None,
) -> list[Start]:
    """Return the sends and receives of a worker's round: of `rows` to be pushed and `out` for pulled ones, if any.

    The primary of shard i, rank servers[i], has the keys and rows [cuts[i], cuts[i + 1]). Without `keys` none are sent.
    """
    receives, sends = [], []
    for rank, tag, begin, end in zip(servers, tags, cuts[:-1], cuts[1:], strict=True):
        if begin == end:
            continue
        if keys is not None:
            sends.append(send(keys[begin:end], rank, tag + KEYS))
        elif rows is None:
            sends.append(send(np.zeros(1, np.uint8), rank, tag + KEYS))
        if rows is not None:
            sends.append(send(rows[begin:end], rank, tag + VALUES))
        receives.append(receive(np.zeros(1, np.uint8) if out is None else out[begin:end], rank, tag + REPLY))
    return receives + sends


def rounds(each: Sequence[Sequence[Start]], oversubscribed: bool = False) -> NDArray[np.float64]:
    """Do one round for each of these starts; return the durations (ns)."""
    wait, times = waits(oversubscribed), np.empty(len(each))
    for at, starts in enumerate(each):
        begin = perf_counter_ns()
        wait([start() for start in starts])
        times[at] = perf_counter_ns() - begin
    return times


# --- The server ------------------------------------------------------------------------------------------


def stage(
    sources: Sequence[int],
    keys: int,
    tag: int,
    following: int | None,
    copies: bool,
    values: Values,
    state: Sequence[Values],
    *,
    rounds: int,
    listed: bool,
    pushes: bool,
    pulls: bool,
    update: str,
    ahead: bool,
) -> Iterator[list[MPI.Request]]:
    """Serve the rounds of some keys of a shard; yield what must be complete before the next step.

    `sources` are the ranks that send: one worker, all workers whose values are summed, or the previous holder if this
    one `copies`. `following` is the next holder. `ahead`: an answer does not wait for it.
    """
    pulls = pulls and not copies
    names = np.ones(keys, np.uint64) if listed else np.zeros(1, np.uint8)
    parts = [np.ones_like(values) for _ in sources] if pushes else []
    # While copies are being sent, the next values are received.
    total = parts[0] if len(parts) == 1 and not ahead else np.ones_like(values)
    answer: NDArray[Any] = np.empty_like(values) if pulls else np.zeros(1, np.uint8)
    receives, onward = [], []
    if listed or not pushes:
        receives += [receive(names, rank, tag + KEYS) for rank in sources]
    receives += [receive(part, rank, tag + VALUES) for part, rank in zip(parts, sources, strict=False)]
    if following is not None:
        onward = [
            send(total, following, tag + VALUES),
            receive(np.zeros(1, np.uint8), following, tag + REPLY),
        ]
        onward += [send(names, following, tag + KEYS)] if listed else []
    replies = [send(answer, rank, tag + REPLY) for rank in sources]

    requests, sent = _started(receives), list[MPI.Request]()
    for left in reversed(range(rounds)):
        yield requests
        if pushes:
            _sum(parts, total)
            UPDATES[update].apply(values, state, total)
        copying = _started(onward)
        if copying and not ahead:
            yield copying
            copying = []
        if pulls:
            # They have arrived; otherwise no source would have started another round.
            MPI.Request.Waitall(sent)
            np.copyto(answer, values)
        # The next receives stand ready before a source can start its next round.
        requests = copying + (_started(receives) if left else [])
        sent = _started(replies)
    yield requests + sent


def _started(starts: Sequence[Start]) -> list[MPI.Request]:
    return [start() for start in starts]


def _sum(parts: Sequence[Values], total: Values) -> None:
    """Set `total` to the sum of the parts, of which it may be the only one."""
    if len(parts) > 1:
        np.add(parts[0], parts[1], total)
    elif total is not parts[0]:
        np.copyto(total, parts[0])
    for part in parts[2:]:
        np.add(total, part, total)


def serve(stages: Sequence[dict[str, Any]], width: int, oversubscribed: bool = False, **how: Any) -> None:
    """Serve a number of rounds; `stages` are arguments of `stage`, and the shard, whose stages share their values."""
    wait, most = waits(oversubscribed), dict[int, int]()
    for each in stages:
        most[each["shard"]] = max(most.get(each["shard"], 0), each["keys"])
    arrays = 1 + UPDATES[how["update"]].arrays
    made = {
        shard: [np.ones((keys, width), np.float32) for _ in range(arrays)] for shard, keys in most.items()
    }
    running = []
    for each in stages:
        about = dict(each)
        values, *state = (array[: each["keys"]] for array in made[about.pop("shard")])
        running.append(stage(**about, values=values, state=state, **how))
    if len(running) == 1:
        for requests in running[0]:
            wait(requests)
        return
    pending = [(each, next(each)) for each in running]
    while pending:
        ready = [MPI.Request.Testall(requests) for _, requests in pending]
        for at in np.flatnonzero(ready)[::-1].tolist():
            one = pending[at][0]
            more = next(one, None)
            if more is None:
                del pending[at]
            else:
                pending[at] = (one, more)
        if oversubscribed and not any(ready):
            os.sched_yield()

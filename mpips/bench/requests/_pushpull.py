"""A program that alternates blocks of pushes or pulls with blocks of the same bytes by plain MPI: see `pushpull`.

One cell of the table (a mode, an operation, a number of keys): the workers prepare it; a block for warm-up; then blocks
of requests and blocks of plain rounds, alternating. Before each block the servers are woken up, and all workers start
at the same time.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count, islice, repeat, zip_longest
from time import perf_counter_ns
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from mpips.bench.requests import _bare
from mpips.jit.kernel import kernel
from mpips.ranges import KeyRange
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec, call, update
from mpips.tasks.task import Task
from mpips.worker.key_list import Keys
from mpips.worker.vector import Vector
from mpips.worker.worker import Answer, Context

Mode = Literal["dense", "sparse", "cached", "rounds"]
Op = Literal["push", "pull", "push_pull"]
Request = Callable[[], Task]

MODES: dict[Mode, tuple[Op, ...]] = {
    "dense": ("push", "pull"),
    "sparse": ("push", "pull"),
    "cached": ("push", "pull"),
    "rounds": ("push_pull",),
}
"""The modes, and the operations of each."""
OPS: tuple[Op, ...] = ("push", "pull", "push_pull")
DTYPE = "float32"
CELLS = "cells.json"
"""A file in the run's folder: [{mode, op, keys, copies, ours, bare}], the last two lists of seconds of all workers."""
BOARD = "board"
"""A vector with keys on every server, by which the servers are called and woken up."""
BLOCKS = 5
"""Minimum number of blocks of a cell, if it has as many repetitions."""
LONGEST = 200
"""Maximum number of repetitions of a block."""
PATTERN = 7
"""Values are 1, 2, ... repeatedly up to this, in key order: those of every layout and update repeat like that."""


@dataclass(frozen=True)
class Settings:
    """The program's table."""

    keys: tuple[int, ...] = (1, 1000)
    """The numbers of keys of a request."""
    modes: tuple[Mode, ...] = tuple(MODES)
    """Which modes."""
    ops: tuple[Op, ...] = OPS
    """Which operations, of those that a mode has."""
    update: str = "add"
    """What a push does: one of `_bare.UPDATES`."""
    width: int = field(default=1, metadata={"at_least": 1})
    """Values per key."""
    effort: float = field(default=1.0, metadata={"above": 0.0})
    """Repetitions, as a multiple of the usual number."""
    arrays: bool = False
    """Whether a cached list is a plain array, not a `KeyList`."""
    scattered: bool = False
    """Whether the rows of a cached list are scattered on the servers."""
    oversubscribed: bool = False
    """Whether ranks outnumber cores, so that plain rounds must yield while they wait."""


def repeats(mode: Mode, values: int, effort: float = 1.0) -> int:
    """Return the repetitions of a cell: fewer for more values, and for new lists, which cost memory and time."""
    if mode == "sparse":
        usual = float(np.interp(np.log10(values), [0, 3, 5, 6, 7], [200, 100, 20, 7, 3]))
    else:
        usual = float(np.clip(6e7 / values, 10, 2000))
    return max(2, round(usual * effort))


def blocks(number: int) -> list[int]:
    """Cut a number of repetitions into blocks."""
    pieces = min(number, max(BLOCKS, -(-number // LONGEST)))
    return [number * (at + 1) // pieces - number * at // pieces for at in range(pieces)]


def random_keys(rng: np.random.Generator, number: int) -> NDArray[np.uint64]:
    """Draw 64-bit keys, sorted and unique."""
    keys = np.empty(0, np.uint64)
    while len(keys) < number:
        more = rng.integers(0, 2**64 - 1, number - len(keys), np.uint64, endpoint=True)
        keys = np.concatenate([keys, more])
        keys.sort()
        # np.unique hashes, which takes a hundred times as long.
        twice = keys[1:] == keys[:-1]
        if twice.any():
            keys = np.delete(keys, np.flatnonzero(twice))
    return keys


# --- The scheduler ---------------------------------------------------------------------------------------


def schedule(cluster: Cluster, settings: Settings) -> dict[str, Any]:
    """Measure every cell, and write all times to the file."""
    board = cluster.create_vector(VectorSpec(BOARD, DTYPE, extent=1 << 20, dense=True))
    cells = []
    with cluster.phase("train"):
        for keys in settings.keys:
            for mode in settings.modes:
                create(cluster, settings, mode, keys)
                ops = [op for op in MODES[mode] if op in settings.ops]
                cells += [measured(cluster, settings, board, mode, op, keys) for op in ops]
    (cluster.folder.path / CELLS).write_text(json.dumps(cells))
    return {"cells": len(cells)}


def create(cluster: Cluster, settings: Settings, mode: Mode, keys: int) -> None:
    """Make the vectors of a mode: one, and another one for every first push."""
    like = VectorSpec(f"{mode}-{keys}", DTYPE, settings.width, update=settings.update)
    if mode in ("dense", "rounds"):
        cluster.create_vector(replace(like, extent=keys, dense=True, aggregate=mode == "rounds"))
        return
    expect = keys * len(cluster.workers)
    cluster.create_vector(like, expect)
    if mode == "sparse" and "push" in settings.ops:
        for number in range(repeats(mode, keys * settings.width, settings.effort) + 1):
            cluster.create_vector(replace(like, name=f"new-{keys}-{number}"), expect)


def measured(
    cluster: Cluster, settings: Settings, board: Vector, mode: Mode, op: Op, keys: int
) -> dict[str, Any]:
    """Measure a cell."""
    workers, times = cluster.workers, repeats(mode, keys * settings.width, settings.effort)
    how = {"mode": mode, "op": op, "keys": keys, "repeats": times + 1, "width": settings.width}
    prepared = workers.call("prepare", how | {"scattered": settings.scattered, "arrays": settings.arrays})
    cuts: list[list[int]] = [each["cuts"] for each in prepared]
    found: dict[str, list[float]] = {"ours": [], "bare": []}
    kinds = {
        "ours": partial(requested, cluster),
        "bare": partial(bare, cluster, settings, board, cuts, mode, op),
    }
    for each in kinds.values():
        each(1)
    for number, size in enumerate(blocks(times)):
        for kind in ("ours", "bare") if number % 2 == 0 else ("bare", "ours"):
            found[kind] += kinds[kind](size)
    workers.call("check")
    copies = max(len(chain.members) for chain in cluster.node.view.chains) - 1
    return {"mode": mode, "op": op, "keys": keys, "copies": copies, **found}


def requested(cluster: Cluster, size: int) -> list[float]:
    """Do a block of requests on the workers; return the durations in seconds."""
    cluster.workers.call("draw", {"size": size})
    return seconds(cluster, cluster.workers.start("requests"))


def bare(
    cluster: Cluster,
    settings: Settings,
    board: Vector,
    cuts: list[list[int]],
    mode: Mode,
    op: Op,
    size: int,
) -> list[float]:
    """Do a block of plain rounds on the same ranks, the first one for warm-up; return the durations."""
    shared = {"rounds": size + 1, "listed": mode == "sparse", "oversubscribed": settings.oversubscribed}
    shared |= {"pushes": op != "pull", "pulls": op != "push"}
    how = {
        "width": settings.width,
        "update": settings.update,
        "ahead": mode == "rounds" and not settings.oversubscribed,
    }
    workers, chains = cluster.workers.ranks, [chain.members for chain in cluster.node.view.chains]
    stages = staged(chains, workers, cuts, summed=mode == "rounds", copied=op != "pull")
    # One call for each server, also if it is the primary of several shards.
    primary = {members[0]: shard for shard, members in enumerate(chains)}
    each = [{"stages": stages.get(rank, [])} for rank in primary]
    serving = cluster.servers.start(
        "pushpull.serve", shared | how, each=each, only=list(primary.values()), vector=board
    )
    tags = [tags_of(len(chains), 0 if mode == "rounds" else at) for at in range(len(workers))]
    asking = cluster.workers.start(
        "bare", shared | {"servers": [members[0] for members in chains]}, each=[{"tags": own} for own in tags]
    )
    cluster.node.wait(serving)
    return seconds(cluster, asking)


def tags_of(shards: int, worker: int) -> list[int]:
    """Return the first tag of a worker's messages about each shard."""
    return [_bare.TAGS * (worker * shards + shard) for shard in range(shards)]


def staged(
    chains: Sequence[Sequence[int]],
    workers: Sequence[int],
    cuts: Sequence[Sequence[int]],
    summed: bool,
    copied: bool,
) -> dict[int, list[dict[str, Any]]]:
    """Return the arguments of `_bare.serve` by server: a stage for each holder of a shard, and worker or sum of all.

    `cuts` are the offsets of the shards' parts in each worker's keys.
    """
    found: dict[int, list[dict[str, Any]]] = {}
    sums = (
        [(workers, cuts[0])] if summed else [([rank], own) for rank, own in zip(workers, cuts, strict=True)]
    )
    for at, (sources, own) in enumerate(sums):
        for shard, tag in enumerate(tags_of(len(chains), at)):
            about = {"shard": shard, "keys": own[shard + 1] - own[shard], "tag": tag}
            holders = chains[shard] if copied else chains[shard][:1]
            before: Sequence[int] = sources
            for place, (rank, following) in enumerate(zip_longest(holders, holders[1:])):
                links = {"sources": list(before), "following": following, "copies": place > 0}
                if about["keys"]:
                    found.setdefault(rank, []).append(about | links)
                before = [rank]
    return found


def seconds(cluster: Cluster, task: Task) -> list[float]:
    """Wait for a call that gives durations (ns); return those of all workers."""
    rows = [reply.values for reply in cluster.node.wait(task)]
    return (np.concatenate(rows).ravel() * 1e-9).tolist()  # type: ignore[no-any-return]


# --- The server ------------------------------------------------------------------------------------------


@update("program")
def add_and_answer(
    values: NDArray[Any],
    state: dict[str, NDArray[Any]],
    slots: NDArray[np.int32],
    rows: NDArray[Any],
    settings: dict[str, Any],
) -> NDArray[Any]:
    """Add rows, and answer with the sums: an update that is not built in."""
    sums: NDArray[Any] = values[slots] + rows
    values[slots] = sums
    return sums


@update("kernel")
@kernel("void(f4[:,::1], i4[::1], f4[:,::1], f8[::1])")
def add_in_kernel(values: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Add rows: an update that is not built in, and a kernel."""
    for i in range(len(slots)):
        for j in range(values.shape[1]):
            values[slots[i], j] += rows[i, j]


@call("pushpull.serve", reads=True)
def serve(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Leave the server's loop for a number of plain rounds."""
    _bare.serve(**args)
    return {}


# --- The worker ------------------------------------------------------------------------------------------


class Worker:
    """Does blocks of requests, and of plain rounds."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self._vector: Vector
        self._keys: NDArray[np.uint64] | KeyRange
        self._rows: NDArray[Any] | None
        self._out: NDArray[Any] | None
        self._requests: Iterator[Request]
        self._drawn: list[Request] = []

    def prepare(
        self, mode: Mode, op: Op, keys: int, repeats: int, width: int, scattered: bool, arrays: bool
    ) -> dict[str, Any]:
        """Make a cell's arrays, and insert the keys that must exist; return the offsets of the shards' parts."""
        rng = np.random.default_rng([keys, self.context.index])
        more = repeats if mode == "sparse" and op == "pull" else 0
        shape = (width,) if width > 1 else ()
        rows = np.resize(np.arange(1, PATTERN + 1, dtype=DTYPE), (keys + more, *shape))
        self._rows = rows[:keys] if op != "pull" else None
        self._out = np.full((keys, *shape), np.nan, DTYPE) if op != "push" else None
        self._keys = KeyRange(0, keys)
        if mode == "sparse" and op == "push":
            self._requests = self._first_pushes(rng, keys)
        elif mode == "sparse":
            self._requests = self._first_pulls(random_keys(rng, keys + more), rows, keys)
        elif mode == "rounds":
            self._vector = self.context.vectors[f"{mode}-{keys}"]
            self._requests = (self._request(self._keys, round=number) for number in count())
        else:
            self._vector = self.context.vectors[f"{mode}-{keys}"]
            names: Keys = self._keys
            if mode == "cached":
                self._keys = listed = random_keys(rng, keys)
                names = listed if arrays else self._vector.key_list(listed)
            self._fill(self._keys, rows, scattered)
            self._requests = repeat(self._request(names))
        return {"cuts": self._cuts()}

    def _fill(self, keys: NDArray[np.uint64] | KeyRange, rows: NDArray[Any], scattered: bool) -> None:
        """Push all keys once: as one list, or as two lists of every second key, so that rows are not in key order."""
        if isinstance(keys, KeyRange) or not scattered:
            self.node.wait(self._vector.push(keys, rows))
            return
        for part in (0, 1):
            self.node.wait(self._vector.push(keys[part::2].copy(), rows[part::2].copy()))

    def _cuts(self) -> list[int]:
        """Return the offset of each shard's part in the keys, and the end."""
        ring, extent = self.node.view.ring, self._vector.spec.extent
        ends = [ring.range(shard, extent).end for shard in range(ring.shards)]
        if isinstance(self._keys, KeyRange):
            return [0, *ends]
        return [0, *np.searchsorted(self._keys, np.array(ends[:-1], np.uint64)).tolist(), len(self._keys)]

    # Requests. Their preparation is not measured.

    def _first_pushes(self, rng: np.random.Generator, keys: int) -> Iterator[Request]:
        """Push lists of new keys that are new to the servers."""
        self._vector, self._keys = self.context.vectors[f"new-{keys}-0"], random_keys(rng, keys)

        def later() -> Iterator[Request]:
            yield self._request(self._keys)
            for number in count(1):
                self._vector = self.context.vectors[f"new-{keys}-{number}"]
                yield self._request(random_keys(rng, keys))

        return later()

    def _first_pulls(self, known: NDArray[np.uint64], rows: NDArray[Any], keys: int) -> Iterator[Request]:
        """Pull lists that are new to the servers, of keys that were pushed in other lists."""
        self._vector, self._keys = self.context.vectors[f"sparse-{keys}"], known[:keys].copy()
        self._fill(known, rows, scattered=True)
        return (self._request(known[begin : begin + keys].copy()) for begin in count())

    def _request(self, keys: Keys, **options: Any) -> Request:
        if self._rows is None:
            return partial(self._vector.pull, keys, out=self._out)
        if self._out is None:
            return partial(self._vector.push, keys, self._rows)
        return partial(self._vector.push_pull, keys, self._rows, out=self._out, **options)

    # Blocks.

    def draw(self, size: int) -> None:
        """Prepare a block of requests."""
        self._drawn = list(islice(self._requests, size))

    def requests(self) -> Answer:
        """Do a block of requests, one after the other; return the durations, f8[size, 1] (ns)."""
        drawn, self._drawn = self._drawn, []
        board = self.context.vectors[BOARD]
        self.node.wait(board.pull(KeyRange(0, board.spec.extent)))
        wait, times = self.node.wait, []
        for request in drawn:
            begin = perf_counter_ns()
            wait(request())
            times.append(perf_counter_ns() - begin)
        return Answer(None, np.array(times, np.float64)[:, None])

    def bare(
        self,
        servers: list[int],
        tags: list[int],
        rounds: int,
        listed: bool,
        oversubscribed: bool,
        pushes: bool,
        pulls: bool,
    ) -> Answer:
        """Do a block of plain rounds, the first one for warm-up; return the durations, f8[rounds - 1, 1] (ns).

        Keys that are sent are another list in each round, as in the compared requests.
        """
        out = np.zeros_like(self._out) if self._out is not None else None
        ask = partial(_bare.ask, servers, self._cuts(), tags)
        if listed and not isinstance(self._keys, KeyRange):
            starts = [ask(self._keys.copy(), self._rows, out) for _ in range(rounds)]
        else:
            starts = [ask(None, self._rows, out)] * rounds
        return Answer(None, _bare.rounds(starts, oversubscribed)[1:, None].copy())

    def check(self) -> None:
        """Check that the pulled values repeat as the pushed ones do."""
        if self._out is None:
            return
        values = self._out.ravel()
        if not (values.all() and np.array_equal(values, np.resize(values[:PATTERN], len(values)))):
            raise RuntimeError(f"{self._vector.spec.name}: the pulled rows are not those of the pushed ones")

"""The distribution of the training data over the workers, also when workers are lost, join or leave.

Each coarse part (first read) consists of fine parts (`mpips.scheduler.data_assignment.Cut`); a lost worker's fine
parts are distributed among several workers. A worker reads only the parts that it does not have, and appends them to
the others. A worker that gives parts to a new one reads its remaining parts again, while the new one reads its own. One
that takes the place of a lost worker reads the same parts, and finds them parsed (`mpips.data.KeptColumns`).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import asdict
from typing import Any

from mpips import (
    COUNT,
    CheckpointError,
    Cluster,
    Context,
    Cut,
    Each,
    InputError,
    Workload,
    read_manifest,
    retry_on_loss,
    schema_error,
)
from mpips.data import (
    Columns,
    EncodingTable,
    Examples,
    KeptColumns,
    Source,
    Tally,
    check_sizes,
    learned,
    load_columns,
)
from mpips.jobs.sparse_lr import evaluate
from mpips.jobs.sparse_lr.blocks import Blocks, joined
from mpips.jobs.sparse_lr.evaluate import Data, check_shards
from mpips.jobs.sparse_lr.exact_blocks import ExactBlocks
from mpips.jobs.sparse_lr.pace import Pace

FINE = 4, 16
"""Least and largest number of fine parts of a coarse one; between them, the number of other workers."""
FINE_FOR_PACE = 8
"""... and the least number if parts are moved by the workers' speed (`pace`)."""


# --- The scheduler ---------------------------------------------------------------------------------------------------


SCHEMA = {"cut": [range(1, 1 << 20), range(1, FINE[1] + 1)], "reads": Each(Each(Each(COUNT)))}
"""The form of the state in a checkpoint."""


def unfit(about: dict[str, Any]) -> str:
    """Return why workers cannot read the same parts as when a checkpoint was written; "" if they can."""
    where, kept = "about.state.spread", about["state"].get("spread")
    if kept is None:
        return ""
    if problem := schema_error(kept, SCHEMA, where):
        return problem
    if len(kept["reads"]) != about["workers"]:
        return f"{where}.reads is of {len(kept['reads'])} workers, and about.workers is {about['workers']}"
    parts = Cut(*kept["cut"]).parts
    beyond = [part for reads in kept["reads"] for read in reads for part in read if part >= parts]
    return f"{where}.reads has part {beyond[0]}, and cut says {parts} parts" if beyond else ""


class Assignment:
    """The assignment of the training data: `reads` are the parts of each worker, by rank, in the order of reading."""

    def __init__(self, cluster: Cluster) -> None:
        workers, parts = cluster.workers.addresses, cluster.job.data.parts
        least = FINE_FOR_PACE if cluster.job.layout.hand_over else FINE[0]
        fine = min(max(len(workers) - 1, least), FINE[1])
        cut = Cut.for_workers(parts, len(workers), fine)
        self.cluster, self.mark = cluster, ""
        self.reads: dict[int, list[list[int]]] = {}
        kept = cluster.decide(lambda: _kept(cluster))
        self.cut = Cut(*kept["cut"]) if kept else cut
        self.table = Workload(self.cut.parts, workers)
        self.pace = Pace()
        # Of the last reading, by the slowest worker.
        self._seconds = 0.0
        self.encoding: EncodingTable | None = None
        """That of tables."""
        if kept:
            self.take(kept["reads"])

    def take(self, reads: list[list[list[int]]]) -> None:
        """Assign the present workers the parts in `reads`, those of each of them in their order."""
        workers = self.cluster.workers.addresses
        self.reads = dict(zip(workers, reads, strict=True))
        self.table = Workload(self.cut.parts, workers)
        for worker, mine in self.reads.items():
            for part in itertools.chain.from_iterable(mine):
                self.table.parts[part].worker = worker

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint, from which the same number of workers read the same parts again."""
        return {"cut": self.cut, "reads": [self.reads[worker] for worker in self.cluster.workers.addresses]}

    def slower(self) -> list[tuple[int, int]]:
        """Return the parts of slow workers that others should have, each with its new worker, if that is asked for."""
        if not self.cluster.job.layout.hand_over:
            return []
        found = self.cluster.decide(lambda: self.pace.plan(self.table, self._seconds))
        return [(part, worker) for part, worker in found]

    def move(self, parts: list[tuple[int, int]]) -> None:
        """Assign parts to other workers, which read them by the next `load`."""
        for part, worker in parts:
            self.table.give(part, worker)
        self.pace.restart()
        shares = [len(self.table.of(worker)) for worker in self.cluster.workers.addresses]
        self.cluster.event("moved", parts=len(parts), shares=shares)

    def encode(self) -> None:
        """Let the workers learn the encoding of tables, unless the checkpoint that the run resumes from has it."""
        # Tables need a label.
        if not self.cluster.job.data.label:
            return
        self.encoding = self.cluster.decide(lambda: _kept_state(self.cluster).get("encoding"))
        if self.encoding is None:
            self.encoding = retry_on_loss(self.cluster, self._learned)

    def _learned(self) -> EncodingTable | None:
        """Return the encoding that the present workers learn."""
        each = evaluate.parts_of(self.cluster)
        found = self.cluster.workers.start("summarise", each=each).result()
        return learned([(one.meta["encoding"], one.values) for one in found])

    def told(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of a call, or a state, with the encoding of tables."""
        return asked if self.encoding is None else asked | {"encoding": self.encoding}

    def load(self) -> Data:
        """Let every worker read its missing parts; return the totals of all data.

        Raises:
            InputError: there are no examples, or others than before.
        """
        data = check_shards(self.cluster, retry_on_loss(self.cluster, self._read), first=not self.mark)
        mark = self.cluster.facts.get("training data", "read")
        if self.mark not in ("", mark):
            raise InputError(
                f"{self.cluster.job.data.train}: has {mark} now, and had {self.mark} when the run began: training "
                "data must stay as it is"
            )
        self.mark = mark
        return data

    def _read(self) -> list[dict[str, Any]]:
        workers = self.cluster.workers.addresses
        for newcomer, lost in self.table.follow(workers).items():
            self.reads[newcomer] = self.reads.pop(lost, [])
        self.reads = {worker: self._reads(worker) for worker in workers}
        each = [{"reads": self.reads[worker]} for worker in workers]
        facts = self.cluster.workers.call("load", self.told({"cut": self.cut}), each=each)
        self._seconds = max(each["seconds"] for each in facts)
        self.check_files()
        return facts

    def check_files(self) -> None:
        """Let each worker check that its data files are still those of the start, and compare names and sizes.

        Raises:
            InputError: one was replaced, or differs between hosts.
        """
        cluster = self.cluster
        found = cluster.workers.start("check_files", self.told({})).result()
        check_sizes(cluster.job.data, str(cluster.job.base), [each.values[:, 0] for each in found])

    def _reads(self, worker: int) -> list[list[int]]:
        mine = {part.number for part in self.table.of(worker)}
        reads = self.reads.get(worker, [])
        have = {part for parts in reads for part in parts}
        # A worker cannot drop a part, since it may have mixed the examples of several.
        if not have <= mine:
            reads, have = [], set()
        new = sorted(mine - have, key=self.cut.order)
        return [*reads, new] if new else reads


def _kept(cluster: Cluster) -> dict[str, Any] | None:
    """Read the assignment from the checkpoint that the run resumes from, if that had as many workers."""
    about = _about(cluster)
    same = about.get("workers") == len(cluster.workers) and about.get("program") == cluster.job.program
    if not same or "state" not in about or unfit(about):
        # `cluster.restore` reports this error, too.
        return None
    kept: dict[str, Any] | None = about["state"].get("spread")
    return kept


def _about(cluster: Cluster) -> dict[str, Any]:
    """Read what the checkpoint that the run resumes from says of itself; {} if there is none."""
    try:
        about: dict[str, Any] = read_manifest(cluster.resume)["about"] if cluster.resume else {}
    except CheckpointError:
        # `cluster.restore` reports the error.
        return {}
    return about


def _kept_state(cluster: Cluster) -> dict[str, Any]:
    """Return the state in that checkpoint, if it is of this program; otherwise {}."""
    about = _about(cluster)
    state = about.get("state") if about.get("program") == cluster.job.program else None
    return state if isinstance(state, dict) else {}


# --- The worker ------------------------------------------------------------------------------------------------------


class WorkerData:
    """Holds a worker's examples: by columns, in `blocks`, or for online learning only their number.

    `find_last_key(batches, tally)` reads examples for online learning, and returns the last possible key; None: the
    examples are kept.
    """

    def __init__(
        self,
        context: Context,
        data: Source,
        find_last_key: Callable[[Iterator[Examples], Tally], int] | None,
    ) -> None:
        self.context, self.data, self._find_last_key = context, data, find_last_key
        self.blocks: Blocks | None = None
        self._columns: Columns | None = None
        self._kept = KeptColumns(context.shared, data.spec)
        self._reads: list[list[int]] | None = None

    def load(
        self, reads: list[list[int]], cut: list[int], encoding: EncodingTable | None = None
    ) -> dict[str, Any]:
        """Read those of `reads`, lists of parts, that are missing; return the totals of all parts."""
        self.data.take(encoding)
        had, begin = self._reads, self.context.node.van.now()
        if had is None or had != reads[: len(had)]:
            had, self._columns, self._tally, self._last = [], None, Tally(), 0
            # Also if it has no parts any more.
            self.blocks = None
        self._reads = reads
        for parts in reads[len(had) :]:
            self._take(parts, Cut(*cut))
        facts = asdict(self._tally) | {"seconds": self.context.node.van.now() - begin}
        if self._find_last_key is not None:
            return facts | {"features": 0, "ones": False, "last": self._last}
        if self.blocks is None or had != reads:
            # There may be more workers than parts, so that one has none.
            make = ExactBlocks if self.context.job.layout.exact_sums else Blocks
            self.blocks = make(load_columns(()) if self._columns is None else self._columns)
        own: dict[str, Any] = self.blocks.facts()
        return facts | own

    def _take(self, parts: list[int], cut: Cut) -> None:
        if self._find_last_key is not None:
            batches = self._examples(parts, cut, self._tally)
            self._last = max(self._last, self._find_last_key(batches, self._tally))
            return
        # Another worker may have parsed them.
        train = self.data.spec.train
        name = self._kept.name(list(cut.slices(train, parts)), self.data.table, cut.shares(train))
        if (found := self._kept.find(name)) is None:
            tally = Tally()
            found = load_columns(self._examples(parts, cut, tally)), tally
            self._kept.keep(name, *found)
        columns, tally = found
        self._tally.add(tally)
        self._columns = columns if self._columns is None else joined(self._columns, columns)

    def _examples(self, parts: list[int], cut: Cut, tally: Tally) -> Iterator[Examples]:
        train = self.data.spec.train
        for files, part, of in cut.slices(train, parts):
            yield from self.context.polling(self.data.read(files, part, of, tally, cut.shares(train)))

"""The record of a run: what took effect in which order, so that it can be repeated with the same bits.

What a rank does follows from its program and from the events that it handles, in their order. So it is enough to
record, of

    a shard    each change, in order: its number, and whose request it was (of a round: whose, in worker order)
    a worker   its events, in order: replies (for reads: number of the shard's changes before); calls; immediate
               calls (NOTIFY); changes of the worker set
    the leader the same replies, in any order: its program does not depend on it (`mpips.scheduler.journal`); which
               of them reported the loss of a worker; every decision

The record does not depend on placement: who held a shard, who died and what was sent twice is not in it. So a run in
which servers and schedulers died is replayed (`mpips.replay.player`) on ranks of which none dies, under any MPI. The
record of a worker that died just ends. Each server that has a copy of a shard records the changes of that copy, and
each leader its replies; which of these records are valid is determined afterwards (`mpips.replay.history`).

The files, in the run's folder `record`; all numbers little-endian:

    shard-0003.rank-0001.bin   the copy of shard 3 on rank 1
    worker-0004.bin            the events of rank 4 as a worker
    leader-0000.bin            the replies to rank 0 as the leader
    decisions-0000.jsonl       {"number", "epoch", "value"}: the decisions that were made on rank 0

A .bin file is cells of 32 bytes: u2 kind, u2 flags, u4 epoch, i4 rank, u4 more, i8 time, i8 value. The first one, of
kind HEAD, has in `value` how many cells count, itself included, in `time` VERSION, in `more` the magic. Then:

    CHANGE  value: number of the change; more: how many callers; rank, time: the first one; flags: its command;
            in the cells after it CALLER (rank, time), the others
    MARK    the server is the primary as of `epoch`; value: its number of changes. Changes above it that others logged
            under earlier epochs are discarded
    ANSWER  a reply; rank: the address, a rank or ~shard; time: of the task; value: of a read, the number of the
            shard's changes before it, else -1
    CALL    rank, time: of the request; logged when the call is queued, or, of a method marked `at_once`, begins
    NOTIFY   a call outside the program's order, executed at once and without a reply; value: bytes of text (JSON) in
            the cells after it: function and arguments
    WORKERS time: the epoch of the worker set; value: bytes of text: its ranks

Of a worker's events, flags has JOINED if it was handled in the same poll as the event before, or in a poll nested in
that one; `more` is the number of the poll by `Node.poll_between` in which it was handled, 0 if during a wait.

The files are mapped into memory: what was written before a process was killed, by whatever signal, is there.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpips.data.spec import resolve
from mpips.errors import InputError
from mpips.files.json_values import json_data, keep
from mpips.files.safe_open import open_own, open_regular
from mpips.rundir.folder import write_json
from mpips.transport.message import NO_ROUND, Kind, Message

if TYPE_CHECKING:
    from mpips.cluster.node import Node
    from mpips.cluster.view import View
    from mpips.config.job_file import Job
    from mpips.tasks.caller import Tasks
    from mpips.transport.fastpath.table import FastPathTable

CELL = struct.Struct("<HHIiIqq")
CELL_BYTES = CELL.size
HEAD, CHANGE, CALLER, MARK, ANSWER, CALL, NOTIFY, WORKERS = range(1, 9)
JOINED, FAILED, LOST = 1, 2, 4
"""Flags: handled in the same poll as the event before; an error; the loss of a worker."""
MAGIC, VERSION = 0x7370696D, 1
FIRST, MOST = 1 << 16, 1 << 22
"""Bytes by which a file grows: at first, and at most."""
_COUNT = struct.Struct("<q")
_COUNT_AT = CELL_BYTES - _COUNT.size


class Log:
    """One file of cells that grows; see the module."""

    def __init__(self, path: Path, rank: int) -> None:
        self.path, self.count = path, 1
        self._file = open_own(path)
        self._size = 0
        try:
            self._map = self._grown()
        except OSError:
            os.close(self._file)
            raise
        CELL.pack_into(self._map, 0, HEAD, 0, 0, rank, MAGIC, VERSION, 1)

    def _grown(self) -> mmap.mmap:
        """Enlarge the file. OSError if the disk is full: a write to the mapping would then end the process (SIGBUS)."""
        more = min(max(FIRST, self._size), MOST)
        try:
            os.posix_fallocate(self._file, self._size, more)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from None
        self._size += more
        return mmap.mmap(self._file, self._size)

    def add(
        self,
        kind: int,
        flags: int,
        epoch: int,
        rank: int,
        more: int,
        time: int,
        value: int,
        text: bytes = b"",
    ) -> None:
        """Append a cell, followed by a text."""
        self.extend([CELL.pack(kind, flags, epoch, rank, more, time, value)], text)

    def extend(self, cells: Sequence[bytes], text: bytes = b"") -> None:
        """Append cells; they are valid once all of them are written."""
        raw = b"".join(cells) + text
        at, end = self.count * CELL_BYTES, self.count * CELL_BYTES + len(raw)
        while end > self._size:
            self._map.close()
            self._map = self._grown()
        self._map[at:end] = raw
        self.count += -(-len(raw) // CELL_BYTES)
        _COUNT.pack_into(self._map, _COUNT_AT, self.count)

    def close(self) -> None:
        """Truncate the file to its used size, if possible: what is too much is not read. Idempotent."""
        if self._file >= 0:
            self._map.close()
            with suppress(OSError):
                os.ftruncate(self._file, self.count * CELL_BYTES)
            os.close(self._file)
            self._file = -1


class ChangeOrder:
    """The order of the changes of one copy of a shard."""

    def __init__(self, recorder: Recorder, number: int) -> None:
        self._recorder, self._number = recorder, number
        self._log: Log | None = None
        self.count = 0
        """The number of the last change."""

    @property
    def log(self) -> Log:
        """The file, created at the first write."""
        if self._log is None:
            self._log = self._recorder.open(f"shard-{self._number:04d}.rank-{self._recorder.rank:04d}.bin")
        return self._log

    def change(self, number: int, command: int, callers: Sequence[tuple[int, int]]) -> None:
        """Record change `number`, and the requests (origin, time) that it finished."""
        epoch, self.count = self._recorder.epoch, number
        origin, time = callers[0]
        cells = [CELL.pack(CHANGE, command, epoch, origin, len(callers), time, number)]
        cells += [CELL.pack(CALLER, 0, epoch, origin, 0, time, 0) for origin, time in callers[1:]]
        self.log.extend(cells)

    def mark(self, number: int) -> None:
        """Record that this server is the primary as of the present epoch, after `number` changes."""
        self.log.add(MARK, 0, self._recorder.epoch, self._recorder.rank, 0, 0, number)


class Recorder:
    """Writes the record of one rank."""

    def __init__(self, node: Node, folder: Path) -> None:
        self._node, self.folder, self.rank = node, folder, node.rank
        self._logs: list[Log] = []
        self._event_logs: dict[str, Log] = {}
        self._orders: dict[int, ChangeOrder] = {}
        self._decisions: int | None = None
        self._flags = self._program_poll = self._program_polls = self._nested = 0
        events = node.observers
        events.tasks += (self._watch,)
        events.turn += (self._turn,)
        events.answered += (self._answered,)
        events.request_begins += (self._request_begins,)
        events.request_ends += (self._request_ends,)
        events.program_poll_begins += (self._program_poll_begins,)
        events.program_poll_ends += (self._program_poll_ends,)
        events.workers += (self._workers,)
        events.serves += (self._serves,)
        events.orders += (self.order,)
        events.called += (self._called,)
        events.notified += (self._notified,)
        events.decided += (self._decided,)
        events.results += (lambda: {"record": size(folder)},)
        # A replay starts from the checkpoint that the run started from.
        events.need_start = True
        events.close += (self.close,)
        self._watch(node.tasks)

    @property
    def epoch(self) -> int:
        """The present epoch."""
        return self._node.view.epoch

    def open(self, name: str) -> Log:
        """Create a file of the record."""
        log = Log(self.folder / name, self.rank)
        self._logs.append(log)
        return log

    def order(self, shard: int) -> ChangeOrder:
        """Return the recorder of a shard's changes on this rank; successive copies share it."""
        return self._orders.setdefault(shard, ChangeOrder(self, shard))

    def close(self) -> None:
        """Close all files; idempotent."""
        for log in self._logs:
            log.close()
        if self._decisions is not None:
            os.close(self._decisions)
            self._decisions = None

    # --- changes at a server ------------------------------------------------------------------------

    def _serves(self, table: FastPathTable) -> None:
        table.observe_pushes(self._pushed)

    def _pushed(self, shard: int, command: int, callers: list[tuple[int, int]]) -> None:
        """Record a push, or a round of pushes, that the server's fast path has applied."""
        order = self._orders[shard]
        order.change(order.count + 1, command, callers)

    # --- the events of a rank ----------------------------------------------------------------------

    def _watch(self, tasks: Tasks) -> None:
        tasks.on_reply = self._replied

    def _turn(self) -> None:
        """Begin a poll, which receives at most one message: the next event is the first of this poll."""
        if not self._nested:
            self._flags = 0

    def _request_begins(self) -> None:
        """Count the polls nested in a request as its own: a call that runs at once may wait for copies."""
        self._nested += 1

    def _request_ends(self) -> None:
        self._nested -= 1

    def _program_poll_begins(self) -> None:
        self._program_polls += 1
        self._program_poll = self._program_polls

    def _program_poll_ends(self) -> None:
        self._program_poll = 0

    def _record(self, kind: int, flags: int, rank: int, time: int, value: int, text: bytes = b"") -> None:
        leads = self._node.view.leader == self.rank
        role = "leader" if leads else "worker"
        log = self._event_logs.get(role)
        if log is None:
            log = self._event_logs[role] = self.open(f"{role}-{self.rank:04d}.bin")
        log.add(kind, flags | self._flags, self.epoch, rank, self._program_poll, time, value, text)
        self._flags = JOINED

    def _replied(self, address: int, time: int, reply: Message, given_up: bool) -> None:
        """Record an accepted reply; at a worker not one `given_up` by a change of the workers, which is recorded."""
        if given_up and self._node.view.leader != self.rank:
            return
        failed = reply.kind is Kind.FAILURE
        flags = (FAILED if failed else 0) | (LOST if failed and reply.meta.get("lost") else 0)
        self._record(ANSWER, flags, address, time, NO_ROUND if given_up else reply.round)

    def _answered(self, slot: int) -> None:
        """Record the reply to a request of the fast path."""
        node = self._node
        self._record(ANSWER, 0, *node.tasks.asked_at(slot), node.van.version())

    def _called(self, request: Message) -> None:
        """Record the arrival of a call."""
        self._record(CALL, 0, request.origin, request.time, 0)

    def _notified(self, meta: dict[str, Any]) -> None:
        """Record an immediate call."""
        text = json.dumps({"call": meta["call"], "args": meta["args"]}).encode()
        self._record(NOTIFY, 0, 0, 0, len(text), text)

    def _workers(self, view: View) -> None:
        """Record a change of the worker set."""
        text = json.dumps(view.workers).encode()
        self._record(WORKERS, 0, self.rank, view.workers_since, len(text), text)

    # --- decisions of the leader ---------------------------------------------------------------------

    def _decided(self, number: int, value: Any) -> None:
        """Record a decision."""
        path = self.folder / f"decisions-{self.rank:04d}.jsonl"
        if self._decisions is None:
            self._decisions = open_own(path, append=True)
        value = json_data(value, keep, f"decision {number}")
        line = json.dumps({"number": number, "epoch": self.epoch, "value": value}).encode() + b"\n"
        try:
            while line:
                line = line[os.write(self._decisions, line) :]
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from None


def size(folder: Path) -> dict[str, int]:
    """Return the size of a record: `bytes`, and `cells` of all its .bin files."""
    total = entries = 0
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.suffix == ".jsonl":
            total += path.stat().st_size
        elif path.suffix == ".bin":
            with open_regular(path, follow=False) as file:
                head = file.read(CELL_BYTES)
            count = CELL.unpack(head)[-1] if len(head) == CELL_BYTES else 0
            total, entries = total + count * CELL_BYTES, entries + count
    return {"bytes": total, "cells": entries}


ABOUT = "about.json"
"""The file that describes the start of a recorded run: {"resume": a checkpoint or null, "inputs": {file: bytes}}."""


def write_about(folder: Path, job: Job, resume: Path | None) -> None:
    """Write `ABOUT` for a run."""
    about = {"resume": None if resume is None else str(resume.absolute()), "inputs": inputs(job)}
    write_json(folder / ABOUT, about)


def inputs(job: Job) -> dict[str, int]:
    """Return the sizes of a job's data files, in bytes."""
    try:
        data = resolve(job.data, str(job.base))
    except InputError:
        # The program reports the error.
        return {}
    named = (*data.train, *data.test, *([data.vocab] if data.vocab else []))
    return {path: os.path.getsize(path) for path in named if os.path.isfile(path)}

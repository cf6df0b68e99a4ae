"""The history of a recorded run, assembled from the records of its ranks (`mpips.replay.recorder`).

Several servers log the changes of a shard, each those of its own copy. A primary may have logged a change that no other
member received, because it died or was excluded. Each new primary logs a MARK (epoch, number of changes); changes above
it logged under earlier epochs are discarded. All other logs agree, since the changes went down the chain.

Of the leaders' records, the last leader's replies are used, since it has run the program from its start.

The record is checked here, before any rank is started: no change may be missing, and each recorded reply to a change
must belong to a recorded change.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.checkpoint.manifest import explained
from mpips.errors import RecordError
from mpips.files import npz
from mpips.files.json_schema import ANY, Each, Table, read_json, schema_error
from mpips.files.safe_open import LARGEST_TEXT, open_regular, read_text, replacing
from mpips.replay.recorder import (
    ANSWER,
    CALLER,
    CELL,
    CELL_BYTES,
    CHANGE,
    HEAD,
    LOST,
    MAGIC,
    MARK,
    NOTIFY,
    VERSION,
    WORKERS,
)
from mpips.transport.message import Command

CELLS = np.dtype(
    [("kind", "<u2"), ("flags", "<u2"), ("epoch", "<u4"), ("rank", "<i4"), ("more", "<u4"), ("time", "<i8"),
     ("value", "<i8")]
)  # fmt: skip
"""Cells as numpy sees them."""
CALLERS = np.dtype([("rank", "<i4"), ("time", "<i8")])
READS = np.dtype([("version", "<i8"), ("rank", "<i4"), ("time", "<i8")])
_TEXTS = {NOTIFY: {"call": str, "args": Table(ANY)}, WORKERS: Each(range(1 << 31))}
_COMMANDS = list(Command)
_PIECE = CELL_BYTES << 17
"""Bytes per read."""
Cells = NDArray[Any]
Key = tuple[int, int]
"""A request to a shard: (origin, time)."""


@dataclass
class ShardHistory:
    """The history of a shard: change n was made for `callers[first[n - 1]:first[n]]`, by `commands[n - 1]`.

    `reads` are sorted by `version`, the number of changes before the read.
    """

    first: NDArray[np.int64]
    callers: NDArray[Any]
    commands: NDArray[np.int64]
    reads: NDArray[Any]

    @property
    def changes(self) -> int:
        """The number of changes."""
        return len(self.commands)

    def save(self, path: Path) -> None:
        """Write it to a file."""
        with replacing(path) as file:
            np.savez(file, first=self.first, callers=self.callers, commands=self.commands, reads=self.reads)

    @classmethod
    def load(cls, path: Path) -> ShardHistory:
        """Read it from a file."""
        with explained("read", path):
            kept = npz.load(path, follow=False)
            return cls(kept["first"], kept["callers"], kept["commands"], kept["reads"])


@dataclass
class LeaderHistory:
    """The inputs of the leader's program: its decisions, and the parts (address, time) that reported a loss."""

    decisions: list[Any] = field(default_factory=list)
    lost: set[tuple[int, int]] = field(default_factory=set)

    def save(self, path: Path) -> None:
        """Write it to a file."""
        with replacing(path, "w") as file:
            json.dump({"decisions": self.decisions, "lost": sorted(self.lost)}, file)

    @classmethod
    def load(cls, path: Path) -> LeaderHistory:
        """Read it from a file. InputError if it is damaged, OSError if it is missing."""
        kept = read_json(path, {"decisions": list, "lost": Each([int, int])}, most=LARGEST_TEXT)
        return cls(kept["decisions"], {(address, time) for address, time in kept["lost"]})


class RecordedEvent(NamedTuple):
    """An event of a worker; see `mpips.replay.recorder`."""

    kind: int
    flags: int
    rank: int
    program_poll: int
    time: int
    value: int
    text: Any = None


@dataclass
class History:
    """The history of a run, by shard and by worker."""

    shards: dict[int, ShardHistory]
    workers: dict[int, Cells]
    """By rank: its events, as cells."""
    leader: LeaderHistory

    def save(self, folder: Path) -> None:
        """Write it to a folder, for the ranks of the replay."""
        folder.mkdir(parents=True, exist_ok=True)
        for number, shard in self.shards.items():
            shard.save(folder / f"shard-{number:04d}.npz")
        for rank, cells in self.workers.items():
            with replacing(folder / f"worker-{rank:04d}.bin") as file:
                file.write(cells.tobytes())
        self.leader.save(folder / "leader.json")


# --- reading records ------------------------------------------------------------------------


def read_cells(path: Path) -> Cells:
    """Read the valid cells of a record's file, without the first.

    Raises:
        RecordError: it is not such a file, or it is truncated.
    """
    with _opened(path) as file:
        head, size = file.read(CELL_BYTES), os.fstat(file.fileno()).st_size
        if len(head) < CELL_BYTES:
            raise RecordError(f"{path}: {len(head)} bytes are too few for a record of a run")
        kind, _, _, _, magic, version, count = CELL.unpack(head)
        if (kind, magic) != (HEAD, MAGIC):
            raise RecordError(f"{path}: is not a record of a run")
        if version != VERSION:
            raise RecordError(
                f"{path}: is of version {version} of the format, and this mpips reads {VERSION}"
            )
        if count < 1 or count * CELL_BYTES > size:
            raise RecordError(f"{path}: truncated: {size} bytes instead of {count * CELL_BYTES}")
        return _cells(path, file, count - 1)


def read_events(path: Path) -> Cells:
    """Read a rank's events: `read_cells`, with a check of the texts."""
    return _checked(path, read_cells(path))


def load_events(path: Path) -> list[RecordedEvent]:
    """Read a worker's events, as `History.save` writes them. RecordError if the file is missing or damaged."""
    with _opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size % CELL_BYTES:
            raise RecordError(f"{path}: truncated: {size} bytes are not a multiple of {CELL_BYTES}")
        cells = _cells(path, file, size // CELL_BYTES)
    return decode_events(_checked(path, cells))


@contextmanager
def _opened(path: Path) -> Iterator[BufferedReader]:
    try:
        with open_regular(path, follow=False) as file:
            yield file
    except OSError as error:
        raise RecordError(f"{path}: {error.strerror}") from None


def _cells(path: Path, file: BufferedReader, count: int) -> Cells:
    """Read `count` cells. RecordError at the first one that was never written, so no sparse file is read to its end."""
    raw = bytearray()
    while len(raw) < count * CELL_BYTES:
        piece = file.read(min(_PIECE, count * CELL_BYTES - len(raw)))
        if not piece or len(piece) % CELL_BYTES or not np.frombuffer(piece, CELLS)["kind"].all():
            raise RecordError(
                f"{path}: truncated: cell {len(raw) // CELL_BYTES + 1} or a later one is missing"
            )
        raw += piece
    return np.frombuffer(raw, CELLS)


def _checked(path: Path, cells: Cells) -> Cells:
    """Return the cells; RecordError if a text in them has not the form that ranks write."""
    texts = np.isin(cells["kind"], (NOTIFY, WORKERS))
    try:
        if (cells["value"][texts] < 0).any():
            raise ValueError
        for each in decode_events(cells) if texts.any() else ():
            if each.kind in _TEXTS and schema_error(each.text, _TEXTS[each.kind]):
                raise ValueError
    except (ValueError, RecursionError):
        raise RecordError(f"{path}: damaged: a text in it is not one that a rank writes") from None
    return cells


def decode_events(cells: Cells) -> list[RecordedEvent]:
    """Return the events in a worker's cells."""
    found, at, raw = [], 0, cells.tobytes()
    while at < len(cells):
        kind, flags, _, rank, program_poll, time, value = cells[at].item()
        text, at = None, at + 1
        if kind in (NOTIFY, WORKERS):
            text = json.loads(raw[at * CELL_BYTES : at * CELL_BYTES + value])
            at += -(-value // CELL_BYTES)
        found.append(RecordedEvent(kind, flags, rank, program_poll, time, value, text))
    return found


def heads(cells: Cells) -> Cells:
    """Return the cells of a rank's events, without texts."""
    if not (np.isin(cells["kind"], (NOTIFY, WORKERS))).any():
        return cells
    chosen, at = [], 0
    while at < len(cells):
        chosen.append(at)
        text = int(cells["value"][at]) if cells["kind"][at] in (NOTIFY, WORKERS) else 0
        at += 1 + -(-text // CELL_BYTES)
    return cells[chosen]


# --- assembling the history ---------------------------------------------------------------------------------------


def _valid(heads: Cells, marks: Sequence[tuple[int, int]]) -> NDArray[np.bool_]:
    """Return which changes in a copy's log are valid: not discarded by a later primary.

    `marks` are (epoch, number of changes) of each new primary of the shard.
    """
    kept = np.ones(len(heads), np.bool_)
    for epoch, number in marks:
        kept &= (heads["epoch"] >= epoch) | (heads["value"] <= number)
    return kept


def merged(name: str, copies: Iterable[Cells]) -> tuple[NDArray[np.int64], Cells, NDArray[np.int64]]:
    """Merge the logs of the copies of a shard; return `first`, callers and commands.

    Raises:
        RecordError: a change is missing, or the logs contradict each other.
    """
    copies = list(copies)
    marks = [
        (int(each["epoch"]), int(each["value"])) for cells in copies for each in cells[cells["kind"] == MARK]
    ]
    known: dict[int, tuple[bytes, int, Cells]] = {}
    for cells in copies:
        at = np.flatnonzero(cells["kind"] == CHANGE)
        for place in at[_valid(cells[at], marks)].tolist():
            whole = cells[place : place + int(cells["more"][place])]
            if len(whole) < cells["more"][place] or (whole["kind"][1:] != CALLER).any():
                raise RecordError(f"{name}: change {cells['value'][place]} is truncated")
            callers = np.empty(len(whole), CALLERS)
            callers["rank"], callers["time"] = whole["rank"], whole["time"]
            number, same = int(cells["value"][place]), callers.tobytes()
            if known.setdefault(number, (same, int(cells["flags"][place]), callers))[0] != same:
                raise RecordError(f"{name}: servers do not agree on what change {number} was")
    missing = next((number for number in range(1, len(known) + 1) if number not in known), 0)
    if missing:
        raise RecordError(f"{name}: change {missing} of {max(known)} is missing")
    ordered = [known[number] for number in range(1, len(known) + 1)]
    callers = np.concatenate([np.empty(0, CALLERS), *(each[2] for each in ordered)])
    first = np.cumsum([0, *(len(each[2]) for each in ordered)]).astype(np.int64)
    return first, callers, np.array([each[1] for each in ordered], np.int64)


def last_replies(logs: Iterable[Cells]) -> dict[tuple[int, int], tuple[int, int]]:
    """Return (flags, version) of the last reply to each (address, time), over the records of all leaders."""
    found: dict[tuple[int, int], tuple[int, int, int]] = {}
    for cells in logs:
        for _, flags, epoch, address, _, time, value in cells[cells["kind"] == ANSWER].tolist():
            if found.get((address, time), (0, 0, -1))[2] <= epoch:
                found[address, time] = (flags, value, epoch)
    return {key: (flags, version) for key, (flags, version, _) in found.items()}


def last_decisions(lines: Iterable[dict[str, Any]]) -> list[Any]:
    """Return the decisions in order of their numbers; of several with one number, the last leader's."""
    found: dict[int, tuple[int, Any]] = {}
    for line in lines:
        number, epoch = line["number"], line["epoch"]
        if number not in found or found[number][0] <= epoch:
            found[number] = (epoch, line["value"])
    if sorted(found) != list(range(len(found))):
        missing = next(number for number in range(len(found)) if number not in found)
        raise RecordError(f"decision {missing} of the program is missing")
    return [found[number][1] for number in range(len(found))]


class _Answers(NamedTuple):
    """The replies of shards to one caller: shards i8[n], and rows as READS; version -1: the reply to a change."""

    shard: NDArray[np.int64]
    reads: NDArray[Any]


def _answers(rank: int, cells: Cells) -> _Answers:
    mine = cells[(cells["kind"] == ANSWER) & (cells["rank"] < 0)]
    reads = np.empty(len(mine), READS)
    reads["version"], reads["rank"], reads["time"] = mine["value"], rank, mine["time"]
    return _Answers(~mine["rank"].astype(np.int64), reads)


def assemble(
    copies: dict[int, list[Cells]],
    workers: dict[int, Cells],
    leaders: Sequence[Cells],
    decisions: Iterable[dict[str, Any]],
    origin: int,
) -> History:
    """Assemble a run's history.

    Args:
        copies: by shard, the logs of its copies.
        workers: by rank, its events as a worker.
        leaders: the replies to each leader.
        decisions: the decisions of all leaders.
        origin: the id of the scheduler as a caller.

    Raises:
        RecordError: a record is missing, or contradicts another.
    """
    replies = last_replies(leaders)
    answers = [_answers(rank, heads(cells)) for rank, cells in workers.items()]
    by_shard = [
        (~address, version, origin, time)
        for (address, time), (flags, version) in replies.items()
        if address < 0 and not flags & LOST
    ]
    reads = np.array([each[1:] for each in by_shard], READS)
    answers.append(_Answers(np.array([each[0] for each in by_shard], np.int64), reads))
    shards = np.concatenate([each.shard for each in answers])
    reads = np.concatenate([each.reads for each in answers])
    found = {}
    for number in sorted({*copies, *shards.tolist()}):
        name = f"shard {number}"
        first, callers, commands = merged(name, copies.get(number, []))
        if (odd := np.flatnonzero(~np.isin(commands, _COMMANDS))).size:
            raise RecordError(f"{name}: change {odd[0] + 1} has an unknown command")
        mine = reads[shards == number]
        _check_answers(name, mine[mine["version"] < 0], callers, copies.get(number, []))
        asked = np.sort(mine[mine["version"] >= 0], order=["version", "rank", "time"])
        if len(asked) and asked["version"][-1] > len(commands):
            raise RecordError(
                f"{name}: it was read after {asked['version'][-1]} changes, but only {len(commands)} are recorded"
            )
        found[number] = ShardHistory(first, callers, commands, asked)
    lost = {key for key, (flags, _) in replies.items() if flags & LOST}
    return History(found, workers, LeaderHistory(last_decisions(decisions), lost))


def _check_answers(name: str, answers: NDArray[Any], callers: Cells, copies: Iterable[Cells]) -> None:
    """Raise RecordError if a reply to a change belongs to no recorded change."""
    changed = set(zip(callers["rank"].tolist(), callers["time"].tolist(), strict=True))
    for _, rank, time in answers.tolist():
        if (rank, time) in changed:
            continue
        if any(((cells["rank"] == rank) & (cells["time"] == time)).any() for cells in copies):
            raise RecordError(
                f"{name}: rank {rank} was answered request {time}, of a round, by a server that was lost before any "
                "other had it, and the round was abandoned when a worker was lost too: such a run cannot be replayed"
            )
        raise RecordError(f"{name}: rank {rank} was answered by a change ({time}) that is not recorded")


NAMES = re.compile(r"(shard)-(\d+)\.rank-\d+\.bin|(worker|leader)-(\d+)\.bin|(decisions)-\d+\.jsonl")


def read_history(folder: Path, origin: int = 0) -> History:
    """Read a run's record, and assemble its history.

    Raises:
        RecordError: there is none, or it is incomplete.
    """
    copies: dict[int, list[Cells]] = {}
    workers: dict[int, Cells] = {}
    leaders: list[Cells] = []
    decisions: list[dict[str, Any]] = []
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        matched = NAMES.fullmatch(path.name)
        if matched is None:
            continue
        if matched[1]:
            copies.setdefault(int(matched[2]), []).append(read_cells(path))
        elif matched[3] == "worker":
            workers[int(matched[4])] = read_events(path)
        elif matched[3] == "leader":
            leaders.append(read_events(path))
        else:
            decisions += _lines(path)
    if not leaders:
        raise RecordError(f"{folder}: there is no record; a run writes one with [record] on = true")
    try:
        return assemble(copies, workers, leaders, decisions, origin)
    except RecordError as error:
        raise RecordError(f"{folder}: {error}") from None


def _lines(path: Path) -> list[dict[str, Any]]:
    found = []
    try:
        lines = read_text(path, follow=False).split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"{path}: {getattr(error, 'strerror', None) or 'is not text'}") from None
    for number, line in enumerate(lines[:-1], 1):
        # A decision takes effect after its line is complete.
        try:
            found.append(json.loads(line))
            if (
                not all(isinstance(found[-1][key], int) for key in ("number", "epoch"))
                or "value" not in found[-1]
            ):
                raise ValueError
        except (ValueError, KeyError, TypeError, RecursionError):
            raise RecordError(f"{path}:{number}: is not a decision") from None
    return found

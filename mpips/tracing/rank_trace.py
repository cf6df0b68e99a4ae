"""Reads and checks the trace of one rank: a file may be truncated, or not written by mpips."""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.cluster.layout import Role
from mpips.errors import InputError
from mpips.files.safe_open import open_regular
from mpips.tracing.trace_file import COUNTS, FACTS, HEADER, MAGIC, NAMES, PIECE, What

DTYPE = np.dtype(
    [
        ("begin", "<f8"), ("end", "<f8"), ("time", "<i8"), ("size", "<i8"), ("peer", "<i4"), ("address", "<i4"),
        ("origin", "<i4"), ("name", "<u2"), ("what", "<u2"),
    ]
)  # fmt: skip
Records = NDArray[Any]
SPANS = (
    What.START, What.PROGRAM, What.PHASE, What.CALL, What.COMPUTE, What.WAIT, What.EXECUTE, What.CHAIN,
    What.ENCODE, What.DECODE, What.SERVE, What.IDLE, What.LEAVE,
)  # fmt: skip
"""The kinds of spans of a rank's main thread."""
FAR = 1e12
"""Seconds above every valid time."""
_KNOWN = tuple(What)[1:]


class TraceError(InputError):
    """A trace is missing or damaged."""


@dataclass
class RankTrace:
    """One rank's trace: records in the order in which they were written, times in seconds since the epoch.

    `unseen` are the seconds by `What`, from `unseen_since` on, without a record; `dropped` is the number of records
    beyond the size limit; `end` is the end of the trace.
    """

    rank: int
    role: str
    index: int
    host: str
    clock: str
    records: Records
    names: dict[int, str]
    end: float
    dropped: int
    unseen: dict[int, float]
    unseen_since: float

    @property
    def begin(self) -> float:
        """Its begin."""
        return float(self.records["begin"].min()) if len(self.records) else self.end

    @property
    def label(self) -> str:
        """Its name: worker 2 (rank 5, host)."""
        return f"{self.role} {self.index} (rank {self.rank}, {self.host})"

    def of(self, *what: What) -> Records:
        """Return its records of the kinds `what`."""
        return self.records[np.isin(self.records["what"], what)]

    def set_forward(self, seconds: float) -> None:
        """Add `seconds` to all times."""
        self.records["begin"] += seconds
        self.records["end"] += seconds
        self.end += seconds
        self.unseen_since += seconds


def load(path: Path) -> tuple[RankTrace, float]:
    """Read a trace; return it, and the offset of the time of day from its clock (s)."""
    try:
        with open_regular(path, follow=False) as file:
            head = file.read(HEADER)
            if len(head) < HEADER or head[: len(MAGIC)] != MAGIC:
                raise TraceError(f"{path}: is not a trace, or was truncated")
            records = _records(file)
    except OSError as error:
        raise TraceError(f"{path}: cannot be read: {error.strerror or error}") from None
    size = struct.unpack_from("<q", head, len(MAGIC))[0]
    try:
        facts = json.loads(head[FACTS : FACTS + size])
        lines = [line.split(b" ", 1) for line in head[NAMES:].rstrip(b"\0").splitlines()]
        names = {int(number): str(json.loads(text)) for number, text in lines}
        end, dropped, _, since, *unseen = struct.unpack_from(f"<dqqd{len(What)}d", head, COUNTS)
        wall, role = float(facts["wall"]), str(Role(facts["role"]))
        last = float(records["end"].max()) if len(records) else 0.0
        trace = RankTrace(
            int(facts["rank"]), role, int(facts["index"]), str(facts["host"]), str(facts["clock"]),
            records, names, max(end, last), int(dropped),
            {int(what): unseen[what] for what in SPANS}, since,
        )  # fmt: skip
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError, struct.error) as error:
        raise TraceError(f"{path}: is damaged: {error}") from None
    wrong = _wrong(records)
    if len(wrong):
        raise TraceError(f"{path}: is damaged: record {wrong[0]} is invalid")
    if not (np.abs([wall, end, since, *unseen]) < FAR).all():
        raise TraceError(f"{path}: is damaged: it has invalid times")
    return trace, wall


def _records(file: BufferedReader) -> Records:
    """Read the records up to the first empty one: a sparse file may declare any number of these."""
    found = [np.empty(0, DTYPE)]
    while piece := file.read(PIECE):
        part = np.frombuffer(piece[: len(piece) // DTYPE.itemsize * DTYPE.itemsize], DTYPE)
        blank = np.flatnonzero(part["what"] == What.NOTHING)
        found.append(part[: blank[0]] if len(blank) else part)
        if len(blank):
            break
    return np.concatenate(found)


def _wrong(records: Records) -> NDArray[np.int64]:
    """Return the indices of invalid records."""
    what, size = records["what"], records["size"]
    sound = (np.abs(records["begin"]) < FAR) & (np.abs(records["end"]) < FAR) & np.isin(what, _KNOWN)
    sound &= np.where(what == What.BEGUN, np.isin(size, SPANS), True)
    sound &= np.where(what == What.UNSEEN, np.isin(records["name"], SPANS), True)
    return np.flatnonzero(~sound)

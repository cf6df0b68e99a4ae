"""The history of a real run: a file of JSON lines for each rank, `history-0003.jsonl` in the run folder's `trace`.

    {"rank": 3, "clock": "..."}          the clock of its times: ranks of one machine share it
    {"of": ["Concluded", 12.5, 0]}       an event: its name, its time in seconds, its fields (`mpips.history.events`)

Every event is written at once, so those of a rank that was killed are there.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable
from logging import WARNING
from pathlib import Path
from typing import Any, NamedTuple

from mpips.cluster.node import Node
from mpips.errors import InputError
from mpips.files.json_lines import JsonLinesWriter, read_lines
from mpips.history.check import Violation, check
from mpips.history.events import Event, from_line, to_line
from mpips.history.recorder import HistoryRecorder
from mpips.process.host import clock_name
from mpips.rundir.log import note
from mpips.transport.time_of_day import since_boot

NAME = "history-{:04d}.jsonl"


def record_history(node: Node, folder: Path, now: Callable[[], float] = since_boot) -> None:
    """Record the history of a node in a folder from now on; a disk that is full ends the record, not the run."""
    try:
        lines = JsonLinesWriter(folder / NAME.format(node.rank))
        lines.append({"rank": node.rank, "clock": clock_name(node.host)})
    except OSError as error:
        note("no history", WARNING, error=str(error))
        return

    def write(event: Event) -> None:
        try:
            lines.append({"of": to_line(event, now())})
        except OSError as error:
            note("history ends", WARNING, error=str(error))
            recorder.stop()

    recorder = HistoryRecorder(node, write)
    node.observers.close += (lines.close,)


class History(NamedTuple):
    """A recorded run: its events, in order on each clock; by rank, its clock; lines that are no events."""

    events: list[Event]
    clocks: dict[int, Hashable]
    bad: int

    def violations(self) -> list[Violation]:
        """Check it; a run of several machines has several clocks."""
        return check(self.events, self.clocks)


def read_history(folder: Path) -> History:
    """Read the files of all ranks.

    Raises:
        InputError: there is none, or one cannot be read, or none has an event.
    """
    paths = sorted(folder.glob("history-*.jsonl"))
    if not paths:
        raise InputError(f"{folder.parent}: has no history; run the job with --set trace.history=true")
    clocks: dict[int, Hashable] = {}
    files: list[list[tuple[float, int, Event]]] = []
    bad = 0
    for number, path in enumerate(paths):
        try:
            lines = read_lines(path)
        except OSError as error:
            raise InputError(f"{path}: {error.strerror or error}") from None
        bad += lines.bad
        found: list[tuple[float, int, Event]] = []
        for line in lines.objects:
            parsed = _parsed(line)
            if isinstance(parsed, dict):
                clocks |= parsed
            elif parsed is None:
                bad += 1
            else:
                found.append((parsed[0], number, parsed[1]))
        files.append(found)
    if not any(files):
        raise InputError(f"{folder}: its files have no events")
    merged = heapq.merge(*files, key=lambda each: each[:2])
    return History([event for _, _, event in merged], clocks, bad)


def _parsed(line: dict[str, Any]) -> tuple[float, Event] | dict[int, Hashable] | None:
    """Return an event and its time, or a rank and its clock; None if the line is neither."""
    try:
        if "of" in line:
            return from_line(line["of"])
        rank, clock = line["rank"], line["clock"]
        return {rank: clock} if type(rank) is int and type(clock) is str else None
    except (ValueError, TypeError, KeyError):
        return None

"""A rank's report of an error: metadata that is sent to the waiting rank, and a line in the log."""

from __future__ import annotations

import traceback
from logging import ERROR
from typing import Any

from mpips.cluster.layout import Place
from mpips.errors import (
    CutShort,
    InputError,
    NoWorkerLeft,
    ProtocolError,
    RemoteError,
    ShardLost,
    UsageError,
    WorkerLost,
    has_no_room,
    in_a_line,
    is_environment,
    is_mpi,
    needs_no_traceback,
)
from mpips.process import program_line
from mpips.rundir.log import note
from mpips.tasks.task import Task


def describe(error: BaseException, place: Place, host: str) -> dict[str, Any]:
    """Return the metadata of an error, and log it; an error of another rank keeps that rank's metadata."""
    if isinstance(error, RemoteError):
        return error.to_meta()
    text = in_a_line(error)
    usage, is_input = isinstance(error, UsageError), isinstance(error, InputError)
    at = "" if is_input and not usage else program_line.of(error)
    # All other errors have a traceback.
    if at and (usage or needs_no_traceback(error) or isinstance(error, ProtocolError)):
        text = f"{text} (at {at})"
    trace = "".join(traceback.format_exception(error))
    lost = isinstance(error, (WorkerLost, NoWorkerLeft))
    # One death may cause hundreds of them.
    follows = lost or isinstance(error, ShardLost) or is_mpi(error)
    cut_short = isinstance(error, CutShort)
    if cut_short:
        note("cut short")
    elif follows:
        note("failed", error=text, follows=True)
    else:
        note("failed", ERROR, error=text, at=at, trace=trace)
    return {
        "rank": place.rank,
        "role": f"{place.role.name.lower()} {place.index}",
        "host": host,
        "text": text,
        "trace": "" if needs_no_traceback(error) else trace[-8000:],
        "is_input": is_input,
        "is_usage": usage,
        "at": at,
        **({"lost": True} if lost else {}),
        **({"is_cut_short": True} if cut_short else {}),
        **({"is_environment": True} if is_environment(error) else {}),
        **({"no_room": True} if has_no_room(error) else {}),
    }


def add_caller(task: Task, who: str) -> None:
    """Add the task, and the line of the program on rank `who` that issued it, to an error of another rank."""
    error, at = task.error, program_line.describe(task.location)
    # A call of a worker's method has that worker's own line.
    called = isinstance(error, RemoteError) and error.at and min(task.under_way, default=-1) >= 0
    if isinstance(error, RemoteError) and at and not error.asked and not called:
        error.asked = f"{who} at {at} ({task.what})"

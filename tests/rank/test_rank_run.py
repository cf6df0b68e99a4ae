"""The end of a failed rank that the leader does not stop."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mpips.cluster.error_report import describe
from mpips.cluster.layout import Layout, LayoutSpec
from mpips.errors import DataError, InputError, RemoteError, UsageError
from mpips.rank.ending import ResultFile
from mpips.rank.rank_run import RankRun
from mpips.rundir.folder import RunFolder, write_json
from mpips.transport.message import Command


class Ended(BaseException):
    """The rank has ended."""


@pytest.fixture
def rank() -> Any:
    """Return a rank, as far as it reports errors, and what it has sent and said at its end."""
    made: Any = object.__new__(RankRun)
    made.mpi, made.most_per_host, made.sent, made.ended = (
        SimpleNamespace(Exception=KeyboardInterrupt),
        1,
        [],
        (),
    )
    clock = iter(range(1000))
    van = SimpleNamespace(now=lambda: float(next(clock)))
    place = Layout.of(3, LayoutSpec()).places[2]

    def quit_now(code: int, why: str = "", trace: str = "") -> None:
        made.ended = (int(code), why, trace)
        raise Ended

    made._quit = quit_now
    made.node = SimpleNamespace(
        describe=lambda error: describe(error, place, "n1"), rank=2, host="n1", van=van,
        view=SimpleNamespace(leader=0), control=lambda *what: made.sent.append(what), wait_until=lambda met: met(),
    )  # fmt: skip
    return made


def own(error: BaseException) -> BaseException:
    """Return an error that has a traceback."""
    try:
        raise error
    except BaseException as raised:
        return raised


REMOTE = ("server 0", "n2", "KeyError: 7", "its trace")


@pytest.mark.parametrize(
    ("error", "code", "why", "traced"),
    [
        (RemoteError(1, *REMOTE), 1, "rank 1 (server 0 on n2): KeyError: 7", True),
        (RemoteError(1, *REMOTE, is_input=True), 2, "rank 1 (server 0 on n2): KeyError: 7", False),
        (
            RemoteError(1, *REMOTE, is_input=True, is_usage=True),
            2,
            "rank 1 (server 0 on n2): KeyError: 7",
            True,
        ),
        (
            RemoteError(1, "server 0", "n2", "a.h5: No space left", no_room=True),
            74,
            "a.h5: No space left",
            False,
        ),
        (own(DataError("a.svm:1: no label")), 2, "rank 2 (worker 0 on n1): a.svm:1: no label", False),
        (own(UsageError("keys must be sorted")), 2, "rank 2 (worker 0 on n1): keys must be sorted", True),
        (
            own(OSError(28, "No space left", "a.h5")),
            74,
            "rank 2 (worker 0 on n1): a.h5: No space left",
            False,
        ),
        (own(ZeroDivisionError("by zero")), 1, "rank 2 (worker 0 on n1): ZeroDivisionError: by zero", True),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_a_rank_that_is_not_stopped_reports_why_it_ends(
    rank: Any, error: BaseException, code: int, why: str, traced: bool
) -> None:
    with pytest.raises(Ended):
        rank._report(rank.node, error)
    ended, said, trace = rank.ended
    assert ended == code and why in said and bool(trace) is traced
    [(to, command, facts)] = rank.sent
    assert (to, command) == (0, Command.FAILED)
    # The leader gets the same error of it.
    reported = RemoteError.from_meta(facts, 2)
    assert reported.text in said and reported.is_input == (code == 2)
    assert issubclass(UsageError, InputError)


def test_a_provisional_result_is_replaced_when_the_run_has_ended(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    result = ResultFile(None, folder)
    write_json(folder.result, {"status": "failed", "error": "asked to stop", "provisional": True})
    result.fail_if_absent("the launcher has ended")
    assert (folder.read_result() or {})["error"] == "asked to stop", "which says why"
    result.fail_if_absent("mpips run has ended", over_provisional=True)
    assert (folder.read_result() or {})["error"] == "mpips run has ended" and folder.has_result()
    ResultFile(None, folder).fail_if_absent("again", over_provisional=True)
    assert (folder.read_result() or {})["error"] == "mpips run has ended"


@pytest.mark.parametrize(("claim", "supervised"), [("ab12", True), ("cd34", False), ("", False)])
def test_ranks_that_are_started_from_inside_a_run_have_exit_codes_of_their_own(
    claim: str, supervised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They inherit the variable of the run around them, which has no part in them."""
    monkeypatch.setenv("MPIPS_SUPERVISED", "ab12")
    monkeypatch.setattr("sys.argv", ["mpips", "job.toml", *(["--claim", claim] if claim else [])])
    assert ResultFile(None).reported_by_launcher is supervised
    monkeypatch.delenv("MPIPS_SUPERVISED")
    assert not ResultFile(None).reported_by_launcher

"""Whether a failed run would fail again."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mpips.cluster.observer import Observers
from mpips.cluster.policy import LIVE
from mpips.errors import InputError, JournalLost, NoWorkerLeft, RemoteError, ShardLost, WorkerLost
from mpips.rank.leader import Leader, fault_times, metrics_line, would_fail_again
from mpips.rank.rank_run import RankRun
from mpips.rundir.folder import JsonLinesWriter, RunFolder, write_json
from mpips.scheduler.pending_orders import PendingOrders


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ZeroDivisionError("division by zero"), True),
        (RemoteError(3, "worker 1", "n2", "KeyError: 'x'"), True),
        (WorkerLost("rank 3 died"), False),
        (NoWorkerLeft("no worker is left"), False),
        (JournalLost("its journal is lost"), False),
        (ShardLost("no copy is left"), False),
        (OSError(5, "Input/output error"), False),
        (RemoteError(3, "worker 1", "n2", "FileNotFoundError: no", is_environment=True), False),
        (RemoteError(3, "worker 1", "n2", "Exception: MPI_ERR_PROC_FAILED", is_environment=True), False),
    ],
)
def test_a_program_fails_again_but_lost_ranks_and_files_may_not(error: Exception, again: bool) -> None:
    assert would_fail_again(error) is again


def test_the_numbers_among_a_programs_metrics_are_printed() -> None:
    metrics = {
        "loss": 0.123456789,
        "passes": 3,
        "weights": [1, 2],
        "gap": None,
        "why": "x" * 80,
        "how": "fast",
    }
    assert metrics_line(metrics) == "loss 0.123457, passes 3, how fast"
    assert metrics_line(None) == metrics_line({}) == ""


@pytest.fixture
def leader(tmp_path: Path) -> Leader:
    """Return a leader of a run of four ranks, as far as it judges errors."""
    folder = RunFolder(tmp_path)
    ranks = [{"rank": rank, "role": "worker", "index": rank - 2, "host": "n1"} for rank in range(4)]
    folder.run.write_text(json.dumps({"started": "2026-01-01T00:00:00+00:00", "ranks": ranks}))
    made: Any = object.__new__(Leader)
    view, van = SimpleNamespace(losses=()), SimpleNamespace(wall=lambda: 2e9)
    made.node = SimpleNamespace(
        describe=lambda error: error.to_meta(), view=view, van=van, rank=0, policy=LIVE, observers=Observers()
    )
    made.folder, made.error, made._returned = folder, "", {}
    made.prepared = SimpleNamespace(resume=None)
    return made


def log(leader: Leader, rank: int, after: float, error: str) -> None:
    with JsonLinesWriter(leader.folder.log(rank)) as lines:
        lines.append(
            {"wall": 1.9e9 + after, "rank": rank, "event": "failed", "error": error, "at": "mean.py:7"}
        )


def test_equal_failures_are_reported_once_by_the_first_rank(leader: Leader) -> None:
    log(leader, 3, 1.0, "KeyError: 3")
    log(leader, 2, 2.0, "KeyError: 2")
    result = leader._failure(RemoteError(2, "worker 0", "n1", "KeyError: 2", "its trace"))
    first, then = "rank 3 (worker 1 on n1): KeyError: 3", "rank 2 (worker 0 on n1): KeyError: 2"
    assert result["error"] == f"{first}; then {then}" and result["failed_rank"] == "rank 3 (worker 1 on n1)"
    assert result["first_failure"]["at"] == "mean.py:7" and leader.error == "its trace"
    result = leader._failure(RemoteError(3, "worker 1", "n1", "KeyError: 3"))
    assert result["error"] == first


def test_a_full_disk_on_any_rank_is_the_exit_code(leader: Leader) -> None:
    leader.prepared.job = SimpleNamespace(checkpoint=SimpleNamespace(directory="c"), resolve=Path)  # type: ignore[assignment]
    leader.recoveries = list  # type: ignore[method-assign]
    full = RemoteError(2, "worker 0", "n1", "a.h5: No space left", is_environment=True, no_room=True)
    assert leader._failure(full)["exit_code"] == 74
    assert leader._failure(RemoteError(2, "worker 0", "n1", "KeyError: 2"))["exit_code"] == 1


def test_an_error_of_a_replay_mentions_that_the_record_may_be_damaged(leader: Leader) -> None:
    leader.node.policy = SimpleNamespace(is_replay=True)  # type: ignore[assignment]
    result = leader._failure(RemoteError(2, "worker 0", "n1", "TypeError: no", "its trace"))
    assert "TypeError: no; the record may be damaged, or of another program" in result["error"]
    assert leader.error == ""


def test_a_usage_error_names_rank_and_log(leader: Leader) -> None:
    log(leader, 2, 1.0, "keys must be sorted")
    wrong = RemoteError(2, "worker 0", "n1", "keys must be sorted", "its trace", True, is_usage=True)
    result = leader._failure(wrong)
    where = "rank 2 (worker 0 on n1)"
    assert result["error"] == f"{where}: keys must be sorted; its log: {leader.folder.log(2)}"
    assert result["exit_code"] == 2 and leader.error == "its trace"
    leader.prepared.resume = Path("checkpoints/step-000003")
    assert leader._failure(wrong)["error"].endswith("; the run resumes from checkpoints/step-000003")
    leader.error = ""
    bad_data = leader._failure(RemoteError(2, "worker 0", "n1", "a.svm:1: no number", "its trace", True))
    assert bad_data["error"] == "a.svm:1: no number" and not leader.error


def test_what_the_program_returned_is_kept_whatever_fails_afterwards(leader: Leader, tmp_path: Path) -> None:
    said: list[str] = []
    metrics = {
        "loss": np.float32(0.5), "curve": np.arange(3), "inf": [1.0, float("inf")], "odd": {"it": object()},
        np.int64(3): np.bool_(True), "nan": np.array([[1.0, np.nan]]),
    }  # fmt: skip
    leader._keep(SimpleNamespace(say=said.append), metrics)  # type: ignore[arg-type]
    result = leader._failure(RemoteError(2, "worker 0", "n1", "the disk is full"))
    write_json(tmp_path / "result.json", result)
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["status"] == "failed"
    assert kept["metrics"] == {
        "loss": 0.5, "curve": [0, 1, 2], "inf": [1.0, None], "odd": {"it": None}, "3": True, "nan": [[1.0, None]],
    }  # fmt: skip
    assert kept["nulls"] == {
        "metrics.inf[1]": "is inf",
        "metrics.odd.it": "is a object, which JSON cannot represent",
        "metrics.nan[0][1]": "is nan",
    }
    assert "metrics.odd.it is a object" in said[0]


def test_millions_of_values_that_are_not_finite_are_reported_in_a_line(leader: Leader) -> None:
    said: list[str] = []
    leader._keep(SimpleNamespace(say=said.append), {"x": np.full(20_000, np.nan)})  # type: ignore[arg-type]
    assert "metrics.x[9] is nan; 19,990 more" in said[0] and len(said[0]) < 300
    assert leader._returned["metrics"]["x"] == [None] * 20_000


def test_what_a_program_returns_is_kept_whatever_it_is(leader: Leader) -> None:
    for returned, kept in (
        ([1, np.int64(2)], {"returned": [1, 2]}),
        (3.0, {"returned": 3.0}),
        ({}, {}),
        (None, None),
    ):
        leader._keep(SimpleNamespace(say=str), returned)  # type: ignore[arg-type]
        assert leader._returned == {"metrics": kept}


def test_metrics_that_contain_themselves_are_cut_at_a_depth(leader: Leader) -> None:
    metrics: dict[str, Any] = {"sum": 1.0}
    metrics["self"] = metrics
    leader._keep(SimpleNamespace(say=str), metrics)  # type: ignore[arg-type]
    assert leader._returned["metrics"]["sum"] == 1.0 and "is nested too deeply" in str(
        leader._returned["nulls"]
    )


def test_the_times_of_injected_faults_are_read_where_ranks_write_them(
    leader: Leader, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.kill", lambda pid, kind: None)
    struck: Any = SimpleNamespace(rank=3, folder=leader.folder)
    RankRun._send_signal(struck, signal.SIGKILL)
    assert fault_times(leader.folder).keys() == {3}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), InputError("no such folder")])
def test_a_stop_signal_raises_no_error_where_it_interrupts_the_program(
    leader: Leader, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail() -> None:
        raise error

    handlers: dict[int, Any] = {}
    monkeypatch.setattr(signal, "signal", handlers.__setitem__)
    monkeypatch.setattr(leader, "_write_provisional_result", fail)
    leader._orders = PendingOrders()
    leader.prepared.options = SimpleNamespace(claim="")
    leader._handle_signals([])
    handlers[signal.SIGTERM](signal.SIGTERM)
    assert leader._orders.stop == "SIGTERM"

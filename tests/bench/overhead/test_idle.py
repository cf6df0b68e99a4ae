"""`mpips bench idle`: its counts and verdicts for idle ranks, and for more ranks than cores."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished

from mpips.bench.overhead import _idle, idle
from mpips.cli import main
from mpips.errors import InputError

CONDITIONS = {"cpu": "a machine", "cores": 2, "load": 0.01, "python": "3", "at": "now"}
RANKS = [
    {"rank": 0, "role": "scheduler", "host": "here", "pid": 1},
    {"rank": 1, "role": "server", "host": "here", "pid": 2},
    {"rank": 2, "role": "worker", "host": "here", "pid": 3},
    {"rank": 3, "role": "worker", "host": "here", "pid": 4},
]


def a_report(**changed: Any) -> dict[str, Any]:
    measured = {"seconds": 2.0, "processor": {"0": 0.02, "1": 0.05, "2": 0.02, "3": 0.04}}
    trips = [
        {"what": what, "pause": pause, "ns": [ns] * 9 + [ns + 1000]}
        for what in ("push", "call", "heard")
        for pause, ns in ((0.0, 50_000), (0.5, 250_000), (0.005, 150_000))
    ]
    report = {
        "conditions": CONDITIONS, "layout": {"servers": 1, "workers": 2}, "seconds": 2.0,
        "rest": idle.shares(RANKS, measured), "wake": idle.lateness(trips),
        "layouts": {"few": {"servers": 1, "workers": 2}, "many": {"servers": 3, "workers": 4}},
        "requests": 10, "batch": 5,
        "oversubscribed": [idle.compare_times("sparse_lr", [1.0, 2.0, 1.0], [1.4, 2.0, 3.0])],
    }  # fmt: skip
    return report | changed


def test_shares_are_by_role() -> None:
    rows = {row["role"]: row for row in a_report()["rest"]}
    assert (rows["scheduler"]["median"], rows["server"]["max"]) == (0.01, 0.025)
    worker = rows["worker"]
    assert (worker["ranks"], worker["median"], worker["max"]) == (2, pytest.approx(0.015), 0.02)


def test_lateness_is_relative_to_trips_without_a_pause() -> None:
    rows = {(row["what"], row["pause"]): row for row in a_report()["wake"]}
    assert list(rows)[:3] == [("call", 0.0), ("call", 0.005), ("call", 0.5)]
    late = rows["heard", 0.5]
    assert (late["p50"], late["p99"]) == (pytest.approx(250e-6), pytest.approx(251e-6))
    assert (late["late_p50"], late["late_p99"]) == (pytest.approx(200e-6), pytest.approx(201e-6))
    assert "late_p99" not in rows["heard", 0.0]


def test_oversubscription_is_measured_by_the_ratios_of_rounds() -> None:
    row = idle.compare_times("requests", [1.0, 2.0, 1.0], [1.4, 2.0, 3.0])
    assert (row["ratio"], row["min"], row["max"], row["few"], row["many"]) == (1.4, 1.0, 3.0, 1.0, 2.0)


@pytest.mark.parametrize(
    ("changed", "missed"),
    [
        ({}, ""),
        (
            {"rest": [{"role": "worker", "ranks": 2, "median": 0.01, "min": 0.01, "max": 0.031}]},
            "< 3 % of a core",
        ),
        (
            {
                "oversubscribed": [
                    idle.compare_times("a", [1.0], [1.0]),
                    idle.compare_times("b", [1.0], [1.6]),
                ]
            },
            "many <= 1.5 times few",
        ),
    ],
)
def test_the_report_names_each_missed_target(changed: dict[str, Any], missed: str) -> None:
    report = a_report(**changed)
    said = idle.text(report)
    assert said.count("NO") == (1 if missed else 0) and f"{missed}: NO" * bool(missed) in said
    assert all(idle.checks(report).values()) is not bool(missed)


def test_only_measured_targets_are_compared() -> None:
    many = {key: value for key, value in a_report().items() if key not in ("rest", "wake")}
    assert list(idle.checks(many)) == ["many <= 1.5 times few"]
    assert "nothing happened" not in idle.text(many)
    rest = {key: value for key, value in a_report().items() if key != "oversubscribed"}
    assert len(idle.checks(rest)) == 2 and "few:" not in idle.text(rest)


def test_a_late_receipt_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idle, "LATE", 200e-6)
    assert "additional latency < 1 ms (p99): NO" in idle.text(a_report())


def test_processor_time_is_read_of_all_threads(tmp_path: Path) -> None:
    folder = tmp_path / "7"
    for thread, spent in ((7, 1_500_000_000), (8, 500_000)):
        (folder / "task" / str(thread)).mkdir(parents=True)
        (folder / "task" / str(thread) / "schedstat").write_text(f"{spent} 12 3\n")
    (folder / "stat").write_text("7 (a) b) S " + " ".join(str(number) for number in range(4, 52)))
    assert _idle.processor_seconds(7, tmp_path) == pytest.approx(1.5005)
    for file in folder.glob("task/*/schedstat"):
        file.unlink()
    assert _idle.processor_seconds(7, tmp_path) == (14 + 15) / os.sysconf("SC_CLK_TCK")
    with pytest.raises(InputError, match="8: does not report the processor time"):
        _idle.processor_seconds(8, tmp_path)


def test_ones_own_processor_time_grows() -> None:
    before, begin = _idle.processor_seconds(os.getpid()), time.process_time()
    while time.process_time() - begin < 0.03:
        pass
    assert _idle.processor_seconds(os.getpid()) > before


def test_ranks_on_other_hosts_are_refused() -> None:
    _idle.check_here(RANKS, "here")
    with pytest.raises(InputError, match="some are on there, not on here"):
        _idle.check_here([*RANKS, {"host": "there"}], "here")


def test_round_trips_are_enough_and_not_too_many() -> None:
    assert [_idle.repeats(pause, 6.0) for pause in (0.0, 0.05, 0.5, 60.0)] == [300, 120, 12, 10]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--workers", "0"], "--workers: must be at least 1, got 0"),
        (["--seconds", "nan"], "--seconds: must be at least 0.1, got nan"),
        (["--pauses", "0.1,x"], "--pauses: 'x' is not a number"),
        (["--pauses", "0"], "--pauses: must be at least 0.0001, got 0"),
        (["--few", "3"], "--few: must be servers+workers, as in 1+2, got '3'"),
        (["--many", "0+4"], "--many: must be servers+workers, as in 1+2, got '0+4'"),
        (["--many", "1+2"], "--many 1+2: must be more ranks than --few 1+2"),
        (["--batch", "600000", "--part", "oversubscribed"], "--batch: must be at most 524288, got 600000"),
    ],
)
def test_wrong_arguments_are_exit_code_2(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        code = main(["bench", "idle", *arguments])
    except SystemExit as caught:
        code = caught.code  # type: ignore[assignment]
    assert code == 2
    captured = capsys.readouterr()
    assert said in captured.err.splitlines()[-1] and captured.out == ""


def test_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        idle.main(["--help"])
    assert caught.value.code == 0
    assert "\n  mpips bench idle" in capsys.readouterr().out


@pytest.mark.ranks
@pytest.mark.once
def test_idle_ranks_are_measured_in_a_run(tmp_path: Path, run_mpips: Callable[..., Finished]) -> None:
    report = tmp_path / "report.json"
    small = ["--part", "rest", "--servers", "1", "--workers", "2", "--seconds", "0.2"]
    small += ["--pauses", "0.002", "--wakes", "0.02", "--json", str(report)]
    done = run_mpips("bench", "idle", *small, timeout=120, cwd=tmp_path)
    assert done.code in (0, 1), done.stdout + done.stderr  # how fast this machine is, is not what is tested
    said = json.loads(report.read_text())
    assert [(row["role"], row["ranks"]) for row in said["rest"]] == [
        ("scheduler", 1), ("server", 1), ("worker", 2),
    ]  # fmt: skip
    assert all(0 < row["median"] <= row["max"] < 2 for row in said["rest"])
    assert {(row["what"], row["pause"]) for row in said["wake"]} == {
        (what, pause) for what in ("push", "call", "heard") for pause in (0.0, 0.002)
    }
    assert all(0 < row["p50"] <= row["p99"] for row in said["wake"])

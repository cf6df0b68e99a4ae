"""`mpips bench overload`: its verdicts."""

from __future__ import annotations

import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest

from mpips.bench.scaling import overload


def test_the_effect_of_a_disturbance_is_measured_before_during_and_after() -> None:
    steady = np.arange(100.005, 112.0, 0.01)
    done = [at for at in steady if not 104.0 <= at < 107.5]
    row = overload.effect("slow", (104.0, 107.0), done)
    assert row["before"] == pytest.approx(100.0) and row["after"] == pytest.approx(100.0)
    assert row["meanwhile"] == 0.0 and row["back"] == 0.5


def a_report(**changed: Any) -> dict[str, Any]:
    row = {"what": "slow", "lasted": 5.0, "before": 100.0, "meanwhile": 2.0, "after": 101.0, "back": 0.25}
    pulse = {"replicas": 1, "pushes": 9, "lost": 0, "losses": 0, "sent_again": {}, "rows": [row]}
    costs = {
        "program": "rounds", "ranks": 32, "time_ratio": 1.2, "bytes_ratio": 2.1, "again": "none", "same": True,
    }  # fmt: skip
    pulse |= {key: value for key, value in changed.items() if key in pulse}
    costs |= {key: value for key, value in changed.items() if key in costs}
    facts = {"cpu": "a machine", "cores": 2, "load": 0.1}
    row |= {key: value for key, value in changed.items() if key in row}
    return {"conditions": facts, "layout": [2, 4], "pulses": [pulse], "oversubscribed": [costs]}


def test_a_good_run_has_no_problems() -> None:
    report = a_report()
    assert overload.problems(report) == []
    assert "all disturbances ended in time" in overload.text(report | {"problems": []})


@pytest.mark.parametrize(
    ("changed", "reported"),
    [
        ({"back": 2.5}, "recovered after 2.50 s"),
        ({"back": float("inf")}, "recovered after inf s"),
        ({"lost": 3}, "3 pushes were lost"),
        ({"losses": 1}, "1 ranks were excluded"),
        ({"sent_again": {"chain": 1}}, "sent again: {'chain': 1}"),
        ({"time_ratio": 1.6}, "1.60 times the time"),
        ({"bytes_ratio": 2.3}, "2.30 times the bytes"),
        ({"again": 4}, "4 messages were sent again"),
        ({"same": False}, "other bits"),
    ],
)
def test_violations_are_reported(changed: dict[str, Any], reported: str) -> None:
    (problem,) = overload.problems(a_report(**changed))
    assert reported in problem


def test_a_slowed_process_continues_afterwards() -> None:
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        begin, end = overload.run_slowed([process.pid], 0.2, 0.002, 0.05)
        assert begin < end <= time.time()
        process.communicate(b"\n", timeout=30)
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()

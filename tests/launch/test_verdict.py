"""The exit code and the last line of `mpips run`, from the result."""

from __future__ import annotations

from pathlib import Path

import pytest

from mpips.launch import verdict


@pytest.mark.parametrize(
    ("result", "launcher_code", "code", "said"),
    [
        ({"status": "completed"}, 0, 0, "completed"),
        ({"status": "completed"}, 1, 0, "completed; run folder: "),
        ({"status": "completed", "recoveries": []}, 0, 0, "completed; run folder: "),
        ({"status": "completed", "recoveries": [{}]}, 137, 0, "completed after 1 recovery; run folder: "),
        ({"status": "completed", "recoveries": [{}, {}]}, -15, 0, "completed after 2 recoveries; run folder"),
        (
            {"status": "stopped"},
            0,
            85,
            "stopped with a checkpoint; resume with: --run-dir /runs/x --resume latest",
        ),
        (
            {"status": "stopped", "before_training": True, "checkpoint": None, "stopped_by": "SIGTERM"},
            0,
            85,
            "mpips: stopped before anything was trained (SIGTERM); there is no checkpoint; start it again with: "
            "--run-dir /runs/x --resume latest; run folder: /runs/x",
        ),
        (
            {"status": "stopped", "before_training": True, "checkpoint": "/c/step-000003"},
            0,
            85,
            "stopped before anything was trained; resume from /c/step-000003 with: --run-dir /runs/x --resume latest",
        ),
        ({"status": "failed", "exit_code": 2, "error": "no such file"}, 0, 2, "failed: no such file"),
        ({"status": "failed", "exit_code": 0}, 3, 1, "exit code 3"),
        ({"status": "failed"}, -9, 1, "SIGKILL"),
        (None, 0, 1, "no result.json (the launcher ended with exit code 0)"),
        (None, 2, 2, "no result.json"),
        (None, 74, 74, "no result.json"),
        (None, 137, 1, "exit code 137"),
        (None, -15, 1, "ended by SIGTERM"),
    ],
)
def test_the_verdict_is_the_results(
    result: dict[str, object] | None, launcher_code: int, code: int, said: str
) -> None:
    judged, line = verdict.judge(result, launcher_code, Path("/runs/x"))
    assert judged == code
    assert said in line
    assert "\n" not in line


def test_without_a_result_the_error_printed_by_a_rank_is_the_reason() -> None:
    output = "mpips: error: first\n pass 7\nmpips: error: /r/metrics.jsonl: No space left on device\nabort"
    _, line = verdict.judge(None, 74, Path("/runs/x"), output=output)
    assert line == "mpips: failed: /r/metrics.jsonl: No space left on device; run folder: /runs/x"


def test_a_verdict_does_not_blame_two_ranks() -> None:
    first = {"rank": 3, "role": "worker 1", "host": "n1", "wall": 0.0, "error": "ended by SIGKILL"}
    failed = {"status": "failed", "exit_code": 1}
    theirs, own = "rank 2 (worker 0 on n1): gone", "rank 3 (worker 1 on n1): ended by SIGKILL"
    where = "first to fail: rank 3 (worker 1 on n1), 1970-01-01 00:00:00 UTC"
    _, line = verdict.judge({**failed, "error": theirs}, 1, Path("/runs/x"), first)
    assert line == f"mpips: failed: ended by SIGKILL; {where}; then {theirs}; run folder: /runs/x"
    _, line = verdict.judge({**failed, "error": own}, 1, Path("/runs/x"), first)
    assert line == f"mpips: failed: {own}; {where}; run folder: /runs/x"

"""Programs that hang, that leave children behind, and that write without end."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from mpips.process.subprocess_output import LARGEST_OUTPUT, Output, run


def shell(text: str, timeout: float = 10.0, stdin_text: str = "") -> Output:
    return run(["sh", "-c", text], timeout, stdin_text=stdin_text)


def test_what_it_writes_and_how_it_ends_is_returned() -> None:
    assert shell("echo out; echo err >&2; exit 3") == (3, "out\n", "err\n")
    assert shell("cat", stdin_text="line\n" * 100_000).stdout == "line\n" * 100_000
    assert shell("cat") == (0, "", "")
    assert shell(r"printf '\377'").stdout == "\ufffd"
    assert shell("kill -9 $$").code == -9
    with pytest.raises(FileNotFoundError):
        run(["/nonexistent/program"], 1.0)


@pytest.mark.parametrize(
    "text",
    [
        "echo here; exec sleep 60",
        "echo here; exec >&- 2>&-; exec sleep 60",
        "echo here; setsid sleep 8 & sleep 60",
    ],
)
def test_one_without_an_end_is_ended(text: str) -> None:
    begin = time.monotonic()
    assert shell(text, 0.3) == (None, "here\n", "")
    assert time.monotonic() - begin < 7


def test_one_that_ends_when_it_is_asked_twice_has_the_time_for_it(tmp_path: Path) -> None:
    ready = tmp_path / "ready"

    def wait() -> None:
        while not ready.exists():
            time.sleep(0.01)

    text = f"trap 'n=$((n+1)); echo $n; [ $n = 2 ] && exit 7' TERM; n=0; touch {ready}; while :; do sleep 0.02; done"
    done = run(["sh", "-c", text], 0.0, at_deadline=wait, after_term=(1.0, 30.0))
    assert done == (None, "1\n2\n", "")


def test_a_child_that_holds_the_pipe_is_not_waited_for() -> None:
    begin = time.monotonic()
    assert shell("echo here; setsid sleep 8 & exit 0", 20.0) == (0, "here\n", "")
    assert time.monotonic() - begin < 4


def test_output_has_a_bound() -> None:
    answer = shell("yes")
    assert answer.code is None and len(answer.stdout) == LARGEST_OUTPUT


def test_one_is_asked_to_end_when_this_process_is(tmp_path: Path) -> None:
    """`mpips validate` runs `mpips run`, whose ranks would go on if it were killed."""
    told = tmp_path / "told"

    def interrupt() -> None:
        while not (tmp_path / "up").exists():
            time.sleep(0.01)
        raise KeyboardInterrupt

    text = f"trap 'touch {told}; exit' TERM; touch {tmp_path}/up; while :; do sleep 0.02; done"
    with pytest.raises(KeyboardInterrupt):
        run(["sh", "-c", text], 0.0, at_deadline=interrupt)
    assert told.exists()

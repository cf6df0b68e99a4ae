"""Programs that hang, that leave children behind, and that write without end."""

from __future__ import annotations

import time

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


def test_a_child_that_holds_the_pipe_is_not_waited_for() -> None:
    begin = time.monotonic()
    assert shell("echo here; setsid sleep 8 & exit 0", 20.0) == (0, "here\n", "")
    assert time.monotonic() - begin < 4


def test_output_has_a_bound() -> None:
    answer = shell("yes")
    assert answer.code is None and len(answer.stdout) == LARGEST_OUTPUT

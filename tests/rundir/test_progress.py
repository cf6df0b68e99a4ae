"""The progress table: short numbers, columns that fit, and a last line that is updated on terminals only."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.rundir import progress
from mpips.rundir.progress import Column, Table

COLUMNS = [
    Column("pass", "pass", 4),
    Column("objective", "objective", 10, progress.significant(6)),
    Column("rate", "ex/s", 6, progress.si),
]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"), (7, "7"), (999, "999"), (999.4, "999"), (999.5, "1.00k"), (1000, "1.00k"), (1234, "1.23k"),
        (9994, "9.99k"), (9996, "10.0k"), (99949, "99.9k"), (99951, "100k"), (999499, "999k"), (999500, "1.00M"),
        (2_500_000, "2.50M"), (-1234, "-1.23k"), (0.25, "0.25"), (1e21, "1000E"), (float("inf"), "inf"),
        (3e30, "3e+30"), (10**400, "inf"),
    ],
)  # fmt: skip
def test_si(value: float, text: str) -> None:
    assert progress.si(value) == text


@given(st.floats(1e3, 1e20))
def test_si_is_short_and_near(value: float) -> None:
    text = progress.si(value)
    assert len(text) <= 5
    assert float(text[:-1]) * 1000 ** progress.SI.index(text[-1]) == pytest.approx(value, rel=0.006)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0004, "0ms"), (0.34, "340ms"), (0.9996, "1.00s"), (9.99, "9.99s"),
        (12.34, "12.3s"), (59.96, "1m00s"), (245, "4m05s"), (7380, "2h03m"),
    ],
)  # fmt: skip
def test_seconds(value: float, text: str) -> None:
    assert progress.seconds(value) == text


def test_shares() -> None:
    assert [progress.share(x) for x in (0, 0.004, 0.0949, 0.12, 1.0)] == [
        "0 %",
        "0.4 %",
        "9.5 %",
        "12 %",
        "100 %",
    ]


def test_rows_stand_under_the_headings() -> None:
    values = {"pass": 3, "objective": 1056.516, "rate": 2_500_000}
    assert progress.header(COLUMNS, 80) == "pass   objective    ex/s"
    assert progress.row(COLUMNS, values, 80) == "   3     1056.52   2.50M"
    assert progress.row(COLUMNS, {"pass": 3}, 80) == "   3           -       -"


def test_columns_that_do_not_fit_are_left_out() -> None:
    assert [column.key for column in progress.fitting(COLUMNS, 24)] == ["pass", "objective", "rate"]
    assert [column.key for column in progress.fitting(COLUMNS, 23)] == ["pass", "objective"]
    assert [column.key for column in progress.fitting(COLUMNS, 1)] == ["pass"]


def test_plain_output_has_no_control_characters() -> None:
    stream = io.StringIO()
    table = Table(COLUMNS, stream, live=False, width=80)
    table.update({"pass": 1})
    table.row({"pass": 1, "objective": 2.0})
    table.note("converged")
    table.close()
    assert stream.getvalue() == "pass   objective    ex/s\n   1     2.00000       -\nconverged\n"


def test_live_output_overwrites_the_last_line() -> None:
    stream = io.StringIO()
    table = Table(COLUMNS, stream, live=True, width=80)
    table.update({"pass": 1})
    table.update({"pass": 1, "rate": 5})
    table.row({"pass": 1, "objective": 2.0, "rate": 5})
    table.update({"pass": 2})
    table.close()
    assert screen(stream.getvalue()) == ["pass   objective    ex/s", "   1     2.00000       5", ""]


def test_a_shorter_line_leaves_nothing_of_the_longer_one() -> None:
    stream = io.StringIO()
    table = Table(COLUMNS, stream, live=True, width=80)
    table.update({"pass": 1, "rate": 5})
    table.note("done")
    assert screen(stream.getvalue())[1:] == ["done", ""]


def screen(text: str) -> list[str]:
    """What a terminal shows after all this was written."""
    lines = []
    for line in text.split("\n"):
        cells: list[str] = []
        for part in line.split("\r"):
            cells[: len(part)] = part
        lines.append("".join(cells).rstrip())
    return lines


def test_environment_variables_describe_the_end_of_the_pipe(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPIPS_PROGRESS", "live")
    monkeypatch.setenv("COLUMNS", "77")
    assert progress.wants_live(io.StringIO())
    assert progress.line_width() == 77
    monkeypatch.setenv("MPIPS_PROGRESS", "plain")
    monkeypatch.setenv("COLUMNS", "no number")
    assert not progress.wants_live(io.StringIO())
    assert progress.line_width() == 120

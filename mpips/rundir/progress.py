"""The progress table of a run: a row per pass and, on a terminal, a line that is updated.

Formatting functions are pure. Rank 0 writes to a pipe, not to the terminal, so `mpips run` sets MPIPS_PROGRESS (live or
plain) and COLUMNS to describe the other end of the pipe.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from mpips.process.printable import Control, printable

SI = ("", "k", "M", "G", "T", "P", "E")


@dataclass(frozen=True)
class Column:
    """One column: the key of its value in a row, its heading, its least width, and how a value is written."""

    key: str
    title: str
    width: int
    show: Callable[[Any], str] = str


def real(value: float) -> float:
    """Convert a number to a float; an integer that is too large becomes infinite."""
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def si(value: float, unit: str = "") -> str:
    """Write a number in four characters or five, with an SI prefix: 1.23k, 45.6M, 789; 1.2e+30 beyond them."""
    if not math.isfinite(real(value)):
        return f"{real(value)}{unit}"
    size, prefix = abs(float(value)), 0
    if size >= 1e24:
        return f"{value:.3g}{unit}"
    # 999.5 and above would be rounded to four digits: it is 1.00 of the next prefix.
    while size >= 999.5 and prefix < len(SI) - 1:
        size, prefix = size / 1000, prefix + 1
    if prefix == 0:
        text = f"{value:.3g}" if 0 < size < 1 or value != int(value) else f"{int(value)}"
    else:
        digits = 2 if size < 9.995 else 1 if size < 99.95 else 0
        text = f"{math.copysign(size, value):.{digits}f}"
    return f"{text}{SI[prefix]}{unit}"


def bytes_si(value: float) -> str:
    """Write a number of bytes: 12.3MB."""
    return si(value, "B")


def share(value: float) -> str:
    """Write a share of one as a percentage: 12 %, or 0.4 % where it is small."""
    value = real(value)
    if not math.isfinite(value):
        return "-"
    percent = 100 * value
    return f"{percent:.0f} %" if percent >= 9.95 or percent == 0 else f"{percent:.1f} %"


def shares(values: Sequence[float]) -> str:
    """Write shares of one as percentages: 12 30 %, or the least and the greatest where there are more than three."""
    percents = [f"{100 * value:.0f}" for value in values]
    if len(percents) > 3:
        percents = [f"{100 * min(values):.0f}-{100 * max(values):.0f}"]
    return " ".join(percents) + " %"


def seconds(value: float) -> str:
    """Write a duration: 340ms, 12.3s, 4m05s, 2h03m."""
    value = real(value)
    if not abs(value) < 1e15:
        return "-"
    if value < 0.9995:
        return f"{value * 1000:.0f}ms"
    if value < 59.95:
        return f"{value:.1f}s" if value >= 9.995 else f"{value:.2f}s"
    whole = round(value)
    return (
        f"{whole // 60}m{whole % 60:02d}s" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}m"
    )


def significant(digits: int) -> Callable[[float], str]:
    """Return a formatter of numbers with so many significant digits, trailing zeros included."""
    return lambda value: f"{value:#.{digits}g}".rstrip(".") if math.isfinite(value) else str(value)


def header(columns: Sequence[Column], width: int) -> str:
    """Write the headings, cut at `width`."""
    return "  ".join(column.title.rjust(column.width) for column in columns)[:width].rstrip()


def row(columns: Sequence[Column], values: Mapping[str, Any], width: int) -> str:
    """Write one row: right-justified under the headings, - where there is no value."""
    cells = []
    for column in columns:
        value = values.get(column.key)
        cells.append(("-" if value is None else column.show(value)).rjust(column.width))
    return "  ".join(cells)[:width].rstrip()


def fitting(columns: Sequence[Column], width: int) -> list[Column]:
    """Keep the leading columns that fit into `width` characters, at least one."""
    kept: list[Column] = []
    used = 0
    for column in columns:
        used += max(column.width, len(column.title)) + (2 if kept else 0)
        if kept and used > width:
            break
        kept.append(Column(column.key, column.title, max(column.width, len(column.title)), column.show))
    return kept


def split(columns: Sequence[Column], width: int, repeated: int = 1) -> list[list[Column]]:
    """Split a wide table into tables of at most `width` characters, each with the first `repeated` columns.

    A column that is too wide for that has a table of its own.

    >>> wide = [Column("key", "key", 6), Column("a", "a", 8), Column("b", "b", 8), Column("c", "c", 8)]
    >>> [[column.key for column in part] for part in split(wide, 26)]
    [['key', 'a', 'b'], ['key', 'c']]
    """
    first, parts = list(columns[:repeated]), [list(columns[:repeated])]
    for column in columns[repeated:]:
        if len(parts[-1]) > repeated and len(header([*parts[-1], column], 10 * width)) > width:
            parts.append(first.copy())
        parts[-1].append(column)
    return parts


class Table:
    """A table that is written row by row.

    Args:
        columns: from the most to the least important; those that do not fit are left out.
        stream: where to write.
        live: the output is a terminal, where a line can be overwritten. By default the value of MPIPS_PROGRESS, or else
            whether `stream` is a terminal.
        width: characters per line; by default COLUMNS, or else 120.
    """

    def __init__(
        self,
        columns: Sequence[Column],
        stream: TextIO | None = None,
        live: bool | None = None,
        width: int | None = None,
    ) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._live = wants_live(self._stream) if live is None else live
        self._width = line_width() if width is None else width
        self._columns = fitting(columns, self._width)
        self.continues = False
        """Whether the headings are written already."""
        self._shown = 0

    def row(self, values: Mapping[str, Any]) -> None:
        """Write a row that stays."""
        self._head()
        self._over(row(self._columns, values, self._width))
        self._end_line()

    def update(self, values: Mapping[str, Any]) -> None:
        """On a terminal, overwrite the line of the current pass; elsewhere do nothing."""
        if self._live:
            self._head()
            self._over(row(self._columns, values, self._width - 1))
            self._stream.flush()

    def note(self, text: str) -> None:
        """Write a line of text between the rows."""
        self._over(text)
        self._end_line()

    def close(self) -> None:
        """Remove the line of the current pass, if there is one."""
        if self._shown:
            self._stream.write(Control("\r" + " " * self._shown + "\r"))
            self._shown = 0
        self._stream.flush()

    def _head(self) -> None:
        if not self.continues:
            self.continues = True
            self._stream.write(header(self._columns, self._width) + "\n")

    def _over(self, text: str) -> None:
        text = printable(text)
        start = "\r" if self._shown else ""
        self._stream.write(Control(start + text + " " * (self._shown - len(text))))
        self._shown = len(text)

    def _end_line(self) -> None:
        self._stream.write("\n")
        self._stream.flush()
        self._shown = 0


def wants_live(stream: TextIO) -> bool:
    """Return whether lines can be overwritten: as MPIPS_PROGRESS says, or else if the stream is a terminal.

    Open MPI gives its ranks pseudo-terminals, wherever their output goes: these do not count.
    """
    said = os.environ.get("MPIPS_PROGRESS")
    if said or "OMPI_COMM_WORLD_RANK" in os.environ:
        return said == "live"
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def line_width() -> int:
    """Return the width of a line in characters."""
    said = os.environ.get("COLUMNS", "")
    return max(20, int(said)) if said.isdigit() and int(said) > 0 else 120

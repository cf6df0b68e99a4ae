"""What the experiments share: how they run, and how results are compared with the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from mpips.bench import _runs
from mpips.bench.applications.sparse_lr import FLIGHTS_OPTIMUM
from mpips.process.printable import printable
from mpips.report.html import Html

WORKERS, SLOWER = 4, 8.0
"""The workers of an experiment, and how many times slower than a core each is: they sleep for the rest. So they share
few cores like small machines, with computation and messages in about the paper's proportion."""
SLOW, CHANCE = 4.0, 0.2
"""The additional slowdown of a straggler, and the share of its work for which each worker is one."""


class Setup(NamedTuple):
    """How an experiment runs: the folder of its runs, the launcher, the number of rounds, and data."""

    folder: Path
    launcher: str = "auto"
    repeat: int = 3
    train: Sequence[str] = ()
    """Examples for logistic regression; empty: those of the job."""
    optimum: float = FLIGHTS_OPTIMUM
    """The optimum of these examples at l1 = 1."""
    corpus: Sequence[str] = ()
    """Documents for topics; empty: those of the job."""

    @property
    def examples(self) -> str:
        """Name the examples."""
        return ", ".join(Path(file).name for file in self.train) or "the flights that come with mpips"

    @property
    def arguments(self) -> list[str]:
        """The options that give another benchmark the examples, their optimum and the launcher."""
        files = [part for file in self.train for part in ("--train", file)]
        return [*files, "--optimum", repr(self.optimum), "--launcher", self.launcher]


class Claim(NamedTuple):
    """One figure of the paper and ours; `agrees` is the value of `agreement`."""

    what: str
    paper: str
    here: str
    agrees: str


class Picture(NamedTuple):
    """A plot: an SVG, its caption, and the legend, (class, text)."""

    svg: Html
    caption: str
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Section:
    """The results of an experiment; the text around them is in `page.md`, under its name."""

    claims: Sequence[Claim]
    table: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The values of the text's {name}."""
    pictures: Mapping[str, Picture] = field(default_factory=dict)


class Experiment(Protocol):
    """A module that measures and compares; `measure` gives JSON data, `compare` is a pure function."""

    ITEM: str
    """The part of the paper, such as a figure."""

    def measure(self, setup: Setup) -> dict[str, Any]: ...
    def compare(self, found: Mapping[str, Any]) -> Section: ...


def machines(workers: int, stragglers: bool = True) -> str:
    """Return the setting that makes workers slow like small machines, with or without stragglers."""
    slow = _runs.slowed(range(workers), SLOWER)
    if stragglers:
        slow += _runs.slowed(range(workers), SLOW, CHANCE)
    return _runs.straggling(slow)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    return "\n".join(
        "| " + " | ".join(printable(cell, keep="").replace("|", "\\|") for cell in cells) + " |"
        for cells in (head, ["---"] * len(head), *rows)
    )


def agreement(ours: float, claim: tuple[float, float], partly: tuple[float, float] = (1.0, 0.0)) -> str:
    """Return whether our figure is in the range (least, most) of the paper's claim, or in part of it."""
    (least, most), (low, high) = claim, partly
    return "yes" if least <= ours <= most else "in part" if low <= ours <= high else "no"

"""What the experiments have in common: where they run, and what each says beside the paper."""

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
"""The workers of an experiment, and how many times slower than a core each is: they sleep for the rest, so that they
share few cores like so many small machines, with computing and messages in about the paper's proportion."""
SLOW, CHANCE = 4.0, 0.2
"""A straggler is so many times slower still, and each worker is one for this share of its work."""


class Lab(NamedTuple):
    """Where an experiment runs, and on what: a folder for its runs, the launcher, rounds of what is timed, and data."""

    folder: Path
    launcher: str = "auto"
    repeat: int = 3
    train: Sequence[str] = ()
    """Examples for logistic regression; none: those that come with the job."""
    optimum: float = FLIGHTS_OPTIMUM
    """Theirs, at l1 = 1."""
    corpus: Sequence[str] = ()
    """Documents for topics; none: those that come with the job."""

    @property
    def examples(self) -> str:
        """Name the examples."""
        return ", ".join(Path(file).name for file in self.train) or "the flights that come with mpips"

    @property
    def switches(self) -> list[str]:
        """What tells another benchmark of the examples, their optimum and the launcher."""
        files = [part for file in self.train for part in ("--train", file)]
        return [*files, "--optimum", repr(self.optimum), "--launcher", self.launcher]


class Claim(NamedTuple):
    """One figure of the paper beside ours; `agrees` is what `agreement` says."""

    what: str
    paper: str
    here: str
    agrees: str


class Picture(NamedTuple):
    """A plot: an SVG, what it shows, and what its colours mean, (class, text)."""

    svg: Html
    caption: str
    legend: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Section:
    """What an experiment came to; the text around it is in `page.md`, under its name."""

    claims: Sequence[Claim]
    table: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    """What the text names by {name}."""
    pictures: Mapping[str, Picture] = field(default_factory=dict)


class Experiment(Protocol):
    """A module that measures, and says what that means; `measure` gives what JSON can hold, `tell` is pure."""

    ITEM: str
    """What of the paper it is about."""

    def measure(self, lab: Lab) -> dict[str, Any]: ...
    def tell(self, found: Mapping[str, Any]) -> Section: ...


def machines(workers: int, stragglers: bool = True) -> str:
    """Give the setting that makes workers small machines, which may be slower now and then."""
    slow = _runs.slowed(range(workers), SLOWER)
    if stragglers:
        slow += _runs.slowed(range(workers), SLOW, CHANCE)
    return _runs.straggling(slow)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Write a table in Markdown."""
    return "\n".join(
        "| " + " | ".join(printable(cell, keep="").replace("|", "\\|") for cell in cells) + " |"
        for cells in (head, ["---"] * len(head), *rows)
    )


def agreement(ours: float, claim: tuple[float, float], partly: tuple[float, float] = (1.0, 0.0)) -> str:
    """Say whether a figure of ours lies where the paper's claim puts it, (least, most); or where it does in part."""
    (least, most), (low, high) = claim, partly
    return "yes" if least <= ours <= most else "in part" if low <= ours <= high else "no"

"""What became of a run, as its folder tells: its job, provenance, result and metrics.

A run that is under way, or that failed, is told of as far as it is known. `mpips report` draws it, `mpips plan` learns
from it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mpips.errors import InputError
from mpips.folder import RunFolder
from mpips.program import table_name
from mpips.uses import UNTRACED, Traced, look


class Curve(NamedTuple):
    """What of a run's metrics shows how far it is."""

    key: str
    title: str
    optimum: str = ""
    """A setting that tells the least value there is: then the excess over it is drawn."""


CURVES = (
    Curve("objective", "objective", "optimum"),
    Curve("log_likelihood_per_token", "log-likelihood a token"),
    Curve("inserts", "inserts"),
    Curve("logloss", "log-loss"),
    Curve("loss", "loss"),
)
STEPS = ("pass", "sweep", "round", "step")
"""What a step of an algorithm is called in its lines."""


@dataclass(frozen=True)
class Run:
    """What a run's folder tells."""

    folder: RunFolder
    result: Mapping[str, Any]
    about: Mapping[str, Any]
    job: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    trace: Traced = UNTRACED
    """Where its ranks' time went, if that was traced and `with_trace` has read it."""

    @property
    def name(self) -> str:
        """Return the folder's name, by which runs are told apart."""
        return self.folder.path.name

    @property
    def status(self) -> str:
        """Return what the result says; a run without one is under way, or was killed."""
        return str(self.result.get("status", "no result"))

    @property
    def seconds(self) -> Mapping[str, float]:
        """Return the seconds of its phases."""
        told: Mapping[str, float] = self.result.get("seconds", {})
        return told

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return the program's own table of the job file."""
        told: Mapping[str, Any] = self.job.get(table_name(self.job["job"]["program"]), {})
        return told

    @property
    def curve(self) -> Curve | None:
        """Return what its curve shows."""
        return next((curve for curve in CURVES if any(curve.key in each for each in self.events)), None)

    @property
    def recoveries(self) -> list[Mapping[str, Any]]:
        """Return whom it lost."""
        return list(self.result.get("recoveries", []))

    def values(self, key: str) -> list[tuple[float, float, float]]:
        """Return (seconds, step, value) of the lines that have a key."""
        found: list[tuple[float, float, float]] = []
        for each in self.events:
            if key in each and "seconds" in each:
                step = next((each[name] for name in STEPS if name in each), len(found) + 1)
                found.append((float(each["seconds"]), float(step), float(each[key])))
        return found


def read(path: Path) -> Run:
    """Read a run's folder. InputError if it is none."""
    folder = RunFolder(path)
    if not folder.job.is_file():
        raise InputError(f"{path}: is no run's folder: it has no {folder.job.name}")
    try:
        about = json.loads(folder.run.read_text(encoding="utf-8")) if folder.run.is_file() else {}
        job = tomllib.loads(folder.job.read_text(encoding="utf-8"))
        text = folder.metrics.read_text(encoding="utf-8") if folder.metrics.is_file() else ""
        events = [json.loads(line) for line in text.splitlines() if line.endswith("}")]
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as a run's folder: {error}") from None
    if not isinstance(about, dict) or not {"job", "layout"} <= job.keys():
        raise InputError(f"{path}: cannot be read as a run's folder: it is not what a run writes")
    return Run(folder, folder.read_result() or {}, about, job, events)


def with_trace(run: Run) -> Run:
    """Read a run's trace, too, as far as there is one and it can be read."""
    return replace(run, trace=look(run.folder, [rank["rank"] for rank in run.about.get("ranks", [])]))

"""The data of a run's folder: its job, provenance, result and metrics.

A run that is in progress or has failed has the data known so far. `mpips report` shows them, `mpips plan` fits its
costs to them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from mpips.config.program import table_name
from mpips.errors import InputError
from mpips.files.json_lines import ignored_lines_warning
from mpips.files.json_schema import ANY, NUMBER, Each, Table, is_number, schema_error
from mpips.report.time_breakdown import UNTRACED, Traced, read_breakdown
from mpips.rundir.folder import RunFolder


class Curve(NamedTuple):
    """A metric that shows the progress of a run."""

    key: str
    title: str
    optimum: str = ""
    """The setting with the optimum: then the excess over it is drawn."""


CURVES = (
    Curve("objective", "objective", "optimum"),
    Curve("log_likelihood_per_token", "log-likelihood a token"),
    Curve("inserts", "inserts"),
    Curve("logloss", "log-loss"),
    Curve("loss", "loss"),
)
_N = NUMBER
REPORT_FORM = {
    "job.toml": {
        "job": {"program": str},
        "layout": {"servers": int, "workers": (int, Table(int)), "spares": int},
        "consistency?": {"model?": str, "tau?": int},
    },
    "run.json": {"ranks?": Each({"rank": int, "role": str, "host": str, "index": int})},
    "result.json": {
        "seconds?": Table(_N),
        "metrics?": Table(ANY),
        "traffic?": {
            **{f"{role}_{kind}": _N for role in ("worker", "server") for kind in ("sent", "raw")},
            "per_filter": Table(Table({"raw": _N, "wire": _N, "seconds": _N})),
        },
        "ranks?": Each({"rank": int, "role": str, "worked": _N, "waited": _N, "cpu": _N}),
        "recoveries?": Each(
            {"rank": int, "role": str, "cause": str, "seconds": _N, "at?": _N, "noticed_after?": (*_N, None)}
        ),
    },
}
"""The fields that a report needs."""

STEPS = ("pass", "sweep", "round", "step")
"""The keys of a step number in an algorithm's lines."""


@dataclass(frozen=True)
class Run:
    """The data of a run's folder."""

    folder: RunFolder
    result: Mapping[str, Any]
    about: Mapping[str, Any]
    job: Mapping[str, Any]
    events: Sequence[Mapping[str, Any]]
    warning: str = ""
    """Data that could not be read, in a line."""
    trace: Traced = UNTRACED
    """The time breakdown of its ranks, if it was traced and `with_trace` has read it."""

    @property
    def name(self) -> str:
        """Return the folder's name, which identifies the run."""
        return self.folder.path.name

    @property
    def status(self) -> str:
        """Return the status in the result; a run without a result is in progress, or was killed."""
        return str(self.result.get("status", "no result"))

    @property
    def seconds(self) -> Mapping[str, float]:
        """Return the seconds of its phases."""
        found: Mapping[str, float] = self.result.get("seconds", {})
        return found

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return the program's own table of the job file."""
        found: Mapping[str, Any] = self.job.get(table_name(self.job["job"]["program"]), {})
        return found

    @property
    def curve(self) -> Curve | None:
        """Return the metric of its curve."""
        return next((curve for curve in CURVES if self.values(curve.key)), None)

    @property
    def recoveries(self) -> list[Mapping[str, Any]]:
        """Return its lost ranks."""
        return list(self.result.get("recoveries", []))

    def values(self, key: str) -> list[tuple[float, float, float]]:
        """Return (seconds, step, value) of the lines that have a key."""
        found: list[tuple[float, float, float]] = []
        for each in self.events:
            if is_number(each.get(key)) and is_number(each.get("seconds")):
                step = next((each[name] for name in STEPS if is_number(each.get(name))), len(found) + 1)
                found.append((float(each["seconds"]), float(step), float(each[key])))
        return found


def read(path: Path) -> Run:
    """Read a run's folder.

    Raises:
        InputError: it is not a run's folder, or a file in it is damaged; one line, with the file's name.
    """
    folder = RunFolder(path)
    if not folder.job.is_file():
        raise InputError(f"{path}: not a run's folder: it has no {folder.job.name}")
    job, about, result, metrics = (
        folder.read_job(), folder.read_run() or {}, folder.read_result() or {}, folder.read_metrics(),
    )  # fmt: skip
    return Run(
        folder, result, about, job, metrics.objects, ignored_lines_warning(folder.metrics, metrics.bad)
    )


def check(run: Run, form: Any = REPORT_FORM, purpose: str = "report") -> Run:
    """Check that a run has the needed fields; return the run.

    Args:
        run: the result of `read`.
        form: the forms of `job.toml`, `run.json` and `result.json` (`mpips.files.json_schema`).
        purpose: their use, for the error message.

    Raises:
        InputError: a field is missing or has another type.
    """
    files = {"job.toml": run.job, "run.json": run.about, "result.json": run.result}
    for name, value in files.items():
        problem = schema_error(value, form[name])
        if problem:
            raise InputError(f"{run.folder.path / name}: no {purpose} can be made of it: {problem}")
    return run


def with_trace(run: Run) -> Run:
    """Add the trace of a run, if it exists and can be read."""
    return replace(
        run, trace=read_breakdown(run.folder, [rank["rank"] for rank in run.about.get("ranks", [])])
    )

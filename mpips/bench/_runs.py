"""What the benchmarks share: common options, complete runs in new processes, and tables of measurements."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mpips.errors import InputError, cannot_write
from mpips.exit_codes import ExitCode
from mpips.process import interpreter
from mpips.process.argument_parser import LAUNCHERS, add_launcher, add_set, program_parser
from mpips.provenance import output_file
from mpips.provenance.provenance import cpu_model
from mpips.rundir.progress import Column, fitting, header, row

if TYPE_CHECKING:
    from mpips.cluster.node import Node

REPORT = rb'\{\n  "benchmark": |\[\n  \{\n    "layout": '
"""The beginning of a file of measurements."""
PLOT = rb"<svg "
"""The beginning of a plot."""
POLL = 0.01
"""Seconds between two checks of a running job."""
ENDING = 15.0
"""Seconds until an interrupted run must have ended."""


class RunFailed(SystemExit):
    """A run of a benchmark failed: prints one line; exit code 1."""

    def __init__(self, text: str) -> None:
        print(f"mpips: bench: {text}", file=sys.stderr)
        super().__init__(ExitCode.FAILED)
        self.text = text


# --- Options ------------------------------------------------------------------------------------------


def at_least(least: float, kind: Callable[[str], Any] = int) -> Callable[[str], Any]:
    """Return an argparse type for numbers of at least `least`."""

    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not least <= value < float("inf"):
            raise argparse.ArgumentTypeError(f"must be at least {least:g}, got {text}")
        return value

    return read


def listed(read: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Return an argparse type for comma-separated lists without duplicates."""
    return lambda text: list(dict.fromkeys(read(part.strip()) for part in text.split(",")))


def one_of(valid: Iterable[str]) -> Callable[[str], str]:
    """Return an argparse type for one of some names."""
    names = list(valid)

    def read(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(names)}")
        return text

    return read


MOST = 10**8
"""The maximum number of rows or keys of a benchmark."""


def count(text: str) -> int:
    """Read a number of keys, as in 1000 or 1e6."""
    try:
        value = float(text.replace("_", ""))
    except ValueError:
        value = 0.5
    if not (1 <= value <= MOST and value == int(value)):
        raise argparse.ArgumentTypeError(
            f"must be whole numbers from 1 to 1e8, as in 1,1000,1e6; got {text!r}"
        )
    return int(value)


def above_one(text: str) -> float:
    """Read a target, relative to the optimum: a number above 1."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 1.0 < value < float("inf"):
        raise argparse.ArgumentTypeError(
            f"must be a number above 1, as in 1.001 (0.1 % above the optimum), got {text}"
        )
    return value


def parser(name: str, description: str, launchers: tuple[str, ...] = LAUNCHERS) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark that starts ranks."""
    made = program_parser(f"mpips bench {name}", description)
    add_launcher(made, "how ranks are started, as for mpips run", launchers)
    made.add_argument("--keep", metavar="DIR", help="keep the run folders in this folder")
    return made


def add_json(made: argparse.ArgumentParser) -> None:
    """Add the option for `write_report`."""
    made.add_argument(
        "--json", type=new_file(REPORT), metavar="FILE", help="also write all measurements to this file"
    )


def new_file(own: bytes) -> Callable[[str], str]:
    """Return an argparse type for a file to write; one with content must begin as `own` says (regular expression)."""

    def read(text: str) -> str:
        try:
            output_file.check(text, own=own)
        except InputError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if not Path(text).absolute().parent.is_dir():
            raise argparse.ArgumentTypeError(f"{text}: there is no folder {Path(text).absolute().parent}")
        return text

    return read


def job_parser(
    name: str, description: str, launchers: tuple[str, ...] = LAUNCHERS
) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark that runs jobs with settings of the user."""
    made = parser(name, description, launchers)
    add_set(made)
    add_json(made)
    return made


def common_parser(name: str, description: str, *, repeat: int = 3) -> argparse.ArgumentParser:
    """Return a parser with the options of the benchmarks that run one job."""
    made = job_parser(name, description)
    made.add_argument("--train", action="append", metavar="FILE", help="training data; repeatable")
    made.add_argument("--test", action="append", metavar="FILE", help="test data; repeatable")
    made.add_argument("--servers", type=at_least(1), default=1, metavar="S", help="default 1")
    made.add_argument("--workers", type=at_least(1), default=2, metavar="W", help="default 2")
    made.add_argument(
        "--repeat", type=at_least(1), default=repeat, metavar="N", help=f"rounds; default {repeat}"
    )
    return made


def job_file(name: str = "job.toml", program: str = "sparse_lr") -> Path:
    """Find the job file of a program of mpips."""
    package = importlib.util.find_spec(f"mpips.jobs.{program}")
    if package is None or package.origin is None:
        raise InputError(f"mpips.jobs.{program} is not installed")
    return Path(package.origin).resolve().parent / name


def overrides(arguments: argparse.Namespace) -> list[str]:
    """Convert the common options to overrides of the job file; the user's own data has no crosses unless set."""
    data = []
    if arguments.test and not arguments.train:
        raise InputError("--test needs --train, data of the same kind")
    if arguments.train:
        train, test = map(absolute, (arguments.train, arguments.test or []))
        data = [f"data.train={json.dumps(train)}", f"data.test={json.dumps(test)}", "data.crosses=[]"]
    layout = [f"layout.servers={arguments.servers}", f"layout.workers={arguments.workers}"]
    return [*data, *layout, *arguments.set]


def slowed(workers: Iterable[int], factor: float, probability: float = 1.0, spell: float = 0.0) -> list[str]:
    """Format an entry that makes a worker slow, always or sometimes: see `faults.Slow`; for `straggling`."""
    more = f", probability = {probability!r}, spell = {spell!r}" if probability < 1.0 else ""
    return [f'{{role = "worker", index = {index}, factor = {factor!r}{more}}}' for index in workers]


def straggling(slow: Iterable[str]) -> str:
    """Return the setting of entries of `slowed`."""
    return f"faults.slow=[{', '.join(slow)}]"


def check_plot(path: str | None) -> None:
    """Raise InputError, before any run, if a plot cannot be written to a file; None: there is no plot."""
    if path is not None and (
        Path(path).suffix.lower() != ".svg" or not Path(path).absolute().parent.is_dir()
    ):
        raise InputError(f"--plot {path}: must be a .svg file in a folder that exists")
    if path is not None:
        output_file.check(path, own=PLOT)


def absolute(files: Sequence[str]) -> list[str]:
    """Return absolute paths, since relative ones in a job file start from its folder.

    Raises:
        InputError: a file is missing.
    """
    for file in files:
        if not Path(file).is_file():
            raise InputError(f"no such data file: {file}")
    return [str(Path(file).absolute()) for file in files]


# --- Runs ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class FinishedRun:
    """The files of a complete run."""

    folder: Path
    result: dict[str, Any]
    passes: list[dict[str, Any]]
    """The lines of its metrics.jsonl for passes."""

    def reached(self, objective: float) -> dict[str, Any] | None:
        """Return the first pass whose objective is not above `objective`, None if there was none."""
        return next((line for line in self.passes if line["objective"] <= objective), None)

    @property
    def sent(self) -> int:
        """Bytes sent by workers and by servers."""
        traffic = self.result["traffic"]
        return int(traffic["worker_sent"]) + int(traffic["server_sent"])


def waiting(run: FinishedRun, until: Mapping[str, Any] | None = None) -> float:
    """Return the workers' mean share of waiting, up to a pass if the lines of passes have it, else of all training."""
    lines = [line for line in run.passes if until is None or line["pass"] <= until["pass"]]
    if not lines or any("waiting" not in line for line in lines):
        return float(run.result["waiting"])
    ends = [0.0, *(line["seconds"] for line in lines)]
    waits = (line["waiting"] * (end - begin) for line, begin, end in zip(lines, ends, ends[1:], strict=False))
    return float(sum(waits) / max(ends[-1], 1e-9))


def run(
    job: Path,
    folder: Path,
    settings: Sequence[str],
    launcher: str = "auto",
    watch: Callable[[Path], None] | None = None,
) -> FinishedRun:
    """Run a job as `mpips run` does, in a new folder; `watch(folder)` is called periodically meanwhile.

    Raises:
        InputError: the run reported wrong input.
        RunFailed: the run failed.
    """
    command = [*interpreter.python(), "-m", "mpips.cli", "run", str(job), "--run-dir", str(folder)]
    command += ["--launcher", launcher]
    for setting in [*settings, f"checkpoint.directory={json.dumps(str(folder / 'checkpoints'))}"]:
        command += ["--set", setting]
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                if watch is not None:
                    watch(folder)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(POLL if watch is not None else None)
        except BaseException:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(ENDING)
            raise
        output.seek(0)
        lines = output.read().strip().splitlines() or ["no output"]
    if process.returncode == ExitCode.BAD_INPUT:
        raise InputError(lines[-1].removeprefix("mpips: error: ").removeprefix("mpips: failed: "))
    if process.returncode != 0:
        raise RunFailed(f"{' '.join(command[4:6])} ended with exit code {process.returncode}: {lines[-1]}")
    return read_run(folder)


def read_run(folder: Path) -> FinishedRun:
    """Read the files of a run's folder."""
    result = json.loads((folder / "result.json").read_text())
    return FinishedRun(folder, result, events(folder, "pass"))


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """Read the lines of one kind of a run's metrics.jsonl: passes, sweeps."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line.get("event") == kind]


def ranks_of(folder: Path) -> list[dict[str, Any]]:
    """Read the ranks of a run from its run.json: role, host and pid of each; empty while it is not written."""
    with suppress(OSError, ValueError, KeyError):
        ranks: list[dict[str, Any]] = json.loads((folder / "run.json").read_text())["ranks"]
        return ranks
    return []


def has_event(folder: Path, kind: str) -> bool:
    """Return whether a run's metrics.jsonl has a line of a kind."""
    with suppress(OSError):
        return f'"{kind}"' in (folder / "metrics.jsonl").read_text()
    return False


@contextmanager
def folders(keep: str | None) -> Iterator[Path]:
    """Return a folder for run folders: the one to keep, or a temporary one that is removed at the end."""
    if keep is not None:
        path = Path(keep).absolute()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise InputError(f"--keep {keep}: exists and is not an empty folder")
        path.mkdir(parents=True, exist_ok=True)
        yield path
        return
    path = Path(tempfile.mkdtemp(prefix="mpips-bench-"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def process_messages(node: Node, seconds: float) -> None:
    """On a rank of a run: only process messages, for the given time."""
    until = node.van.now() + seconds
    node.wait_until(lambda: node.van.now() >= until)


# --- Measurements --------------------------------------------------------------------------------------


def conditions() -> dict[str, Any]:
    """Return the conditions of a measurement: the machine, its cores, and its present load."""
    return {
        "cpu": cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "load": os.getloadavg()[0],
        "python": platform.python_version(),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def described(facts: Mapping[str, Any]) -> str:
    """Format the conditions in one line, with a warning if other processes load the machine."""
    cores, load = facts["cores"], facts["load"]
    busy = "; other processes use it, so times are unreliable" if load > 0.3 * cores else ""
    return f"machine: {facts['cpu']}, {cores} cores, load {load:.2f} before the start{busy}"


def summarize(values: Iterable[float]) -> dict[str, float]:
    """Return median, minimum and maximum of at least one value."""
    values = list(values)
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def overhead(off: Sequence[float], on: Sequence[float], target: float) -> dict[str, Any]:
    """Compare times of rounds with a feature to those without it: medians, and the median of the rounds' ratios."""
    ratios = summarize(with_it / without for without, with_it in zip(off, on, strict=True))
    return {
        "off": statistics.median(off),
        "on": statistics.median(on),
        "ratio": ratios["median"],
        "range": f"{ratios['min']:.3f} - {ratios['max']:.3f}",
        "met": "yes" if ratios["median"] < target else "NO",
    }


def table(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """Format an aligned table; every column is as wide as its widest cell."""
    cells = [{c.key: c.show(r[c.key]) for c in columns if r.get(c.key) is not None} for r in rows]
    fitted = [
        Column(c.key, c.title, max([c.width, len(c.title), *(len(cell.get(c.key, "-")) for cell in cells)]))
        for c in columns
    ]
    fitted, width = fitting(fitted, 10_000), 10_000
    return "\n".join([header(fitted, width), *(row(fitted, cell, width) for cell in cells)])


def write_report(path: str | None, report: Mapping[str, Any]) -> None:
    """Write all measurements as JSON, if a file was named.

    Raises:
        InputError: it cannot be written.
    """
    if path is not None:
        try:
            Path(path).write_text(json.dumps(report, indent=2) + "\n")
        except OSError as error:
            raise cannot_write(f"--json {path}", error) from None


def note(text: str) -> None:
    """Report the progress of a benchmark on stderr, apart from its results."""
    print(text, file=sys.stderr, flush=True)

"""`mpips bench memory`: growth of time and memory with the size of the data."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from mpips.bench import _runs
from mpips.bench._runs import note, summarize
from mpips.config.job_file import load
from mpips.data import DataSpec, format_of, load_columns, read, resolve
from mpips.data.spec import as_list
from mpips.data.stream import line_blocks
from mpips.errors import InputError
from mpips.rundir.progress import Column, bytes_si, seconds, si, significant

DESCRIPTION = """\
Memory and time of the block proximal method on increasing parts of the data. Memory: the peak resident set of each
worker process (VmHWM), with reading the data, minus that of a worker of a run on eight examples; and the bytes of the
worker's data as compressed columns (CSC). Time: seconds per pass over the first passes.

  mpips bench memory                                the project's own data, 1/8 to all of it
  mpips bench memory --parts 0.1,1 --workers 1
  mpips bench memory --train news20.train.svm.xz --json memory.json

Text files only; they are decompressed into a temporary folder.
"""

COLUMNS = (
    Column("part", "part", 6, significant(3)),
    Column("examples", "examples", 9, si),
    Column("nonzeros", "non-zeros", 9, si),
    Column("columns", "CSC/worker", 10, bytes_si),
    Column("peak", "peak", 8, bytes_si),
    Column("above", "above empty", 11, bytes_si),
    Column("times", "times CSC", 9, significant(3)),
    Column("load", "reading", 8, seconds),
    Column("pass_seconds", "s/pass", 8, seconds),
    Column("nanoseconds", "ns/non-zero", 11, significant(3)),
)
EMPTY = 8
"""The number of examples of the run without data."""


def parts(text: str) -> list[float]:
    """Parse the parts of the data: 0.25,0.5,1."""
    try:
        values = sorted({float(part) for part in text.split(",")})
    except ValueError:
        values = [0.0]
    if not all(0.0 < value <= 1.0 for value in values):
        raise argparse.ArgumentTypeError(f"must be numbers above 0 and up to 1, as in 0.25,0.5,1; got {text}")
    return values


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = _runs.common_parser("memory", DESCRIPTION, repeat=1)
    parser.add_argument(
        "--parts", type=parts, default=[0.125, 0.25, 0.5, 1.0], help="default 0.125,0.25,0.5,1"
    )
    parser.add_argument(
        "--passes", type=_runs.at_least(1), default=5, help="passes that are timed; default 5"
    )
    options = parser.parse_args(arguments)
    if not Path("/proc/self/status").is_file():
        raise InputError("this system does not report the memory of processes (no /proc/self/status)")
    settings = [*_runs.overrides(options), f"sparse_lr.passes={options.passes}", "data.test=[]"]
    conditions, job = _runs.conditions(), load(_runs.job_file(), settings)
    spec = resolve(job.data, str(job.base))
    rows: list[dict[str, Any]] = []
    with _runs.folders(options.keep) as folder:
        lines = count_lines(spec)
        sizes = [max(EMPTY, round(lines * part)) for part in options.parts]
        for part, size in zip([0.0, *options.parts], [EMPTY, *sizes], strict=True):
            note(f"{size:,} of {lines:,} lines")
            file = folder / f"first-{size}.{'tsv' if format_of(spec.train[0], spec) == 'tsv' else 'svm'}"
            write_lines(spec, size, file)
            own = DataSpec(**{**vars(spec), "train": [str(file)], "test": []})
            sample = [
                one_run(
                    folder / f"part-{size}-{number}",
                    [*settings, f"data.train={json.dumps([str(file)])}"],
                    options,
                )
                for number in range(options.repeat)
            ]
            rows.append(summary(part, own, options.workers, sample))
            file.unlink()
    empty, rows = rows[0], rows[1:]
    for row in rows:
        row["above"] = max(row["peak"] - empty["peak"], 0)
        row["times"] = row["above"] / row["columns"]
    report = {
        "benchmark": "memory",
        "conditions": conditions,
        "workers": options.workers,
        "servers": options.servers,
        "empty": empty,
        "rows": rows,
    }
    print(text(report))
    _runs.write_report(options.json, report)
    return 0


def count_lines(spec: DataSpec) -> int:
    """Count the lines of the training files.

    Raises:
        InputError: a file is HDF5, which has no lines.
    """
    for path in spec.train:
        if format_of(path, spec) == "hdf5":
            raise InputError(f"{path}: must be a text file; give the file it was converted from")
    return sum(block.count(b"\n") for path in spec.train for block in line_blocks(path))


def write_lines(spec: DataSpec, count: int, target: Path) -> None:
    """Write the first lines of the training files, and the first file's column names."""
    written, count = 0, count + 1
    with target.open("wb") as file:
        for block in (block for path in as_list(spec.train) for block in line_blocks(path)):
            lines = list(islice(bytes(block).splitlines(keepends=True), count - written))
            file.writelines(lines)
            written += len(lines)
            if written == count:
                return


def one_run(folder: Path, settings: Sequence[str], options: argparse.Namespace) -> dict[str, Any]:
    """Run the job, and sample its workers' memory meanwhile."""
    peaks: dict[int, int] = {}
    workers: list[int] = []

    def watch(at: Path) -> None:
        if not workers:
            workers.extend(each["pid"] for each in _runs.ranks_of(at) if each["role"].startswith("worker"))
        for pid in workers:
            peaks[pid] = max(peaks.get(pid, 0), peak_memory(pid))

    run = _runs.run(_runs.job_file(), folder, settings, options.launcher, watch)
    if len(peaks) < options.workers or not all(peaks.values()):
        raise InputError("the workers' memory cannot be read: run all ranks on this machine")
    return {
        "peak": max(peaks.values()),
        "load": run.result["seconds"]["load"],
        "pass_seconds": run.passes[-1]["seconds"] / len(run.passes),
    }


def peak_memory(pid: int) -> int:
    """Return the peak resident set of a process so far, in bytes; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


def summary(part: float, spec: DataSpec, workers: int, runs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the medians over the runs of one part, and the largest size of a worker's data."""
    columns = [load_columns(read(as_list(spec.train), spec, index, workers)) for index in range(workers)]
    nonzeros = sum(len(each.rows) for each in columns)
    row = {key: summarize(each[key] for each in runs)["median"] for key in ("peak", "load", "pass_seconds")}
    return row | {
        "part": part,
        "examples": sum(len(each.labels) for each in columns),
        "nonzeros": nonzeros,
        "columns": max(each.nbytes for each in columns),
        "nanoseconds": row["pass_seconds"] / nonzeros * 1e9,
    }


def text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    rows = report["rows"]
    lines = [
        _runs.described(report["conditions"]),
        f"servers {report['servers']}, workers {report['workers']}; "
        f"an empty worker's peak is {bytes_si(report['empty']['peak'])}",
        "",
        _runs.table(COLUMNS, rows),
        "",
        f"memory above an empty worker's: at most {max(row['times'] for row in rows):.2f} times the CSC data",
    ]
    if len(rows) > 1:
        first, last = rows[0], rows[-1]
        slope = (last["peak"] - first["peak"]) / (last["columns"] - first["columns"])
        lines.append(
            f"from the first part to the last, each additional byte of CSC data takes {slope:.2f} bytes"
        )
        grown = last["nonzeros"] / first["nonzeros"]
        lines.append(
            f"{grown:.1f} times the non-zeros: {last['pass_seconds'] / first['pass_seconds']:.1f} times the time "
            f"per pass, {last['above'] / max(first['above'], 1):.1f} times the memory"
        )
    return "\n".join(lines)

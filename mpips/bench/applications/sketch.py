"""`mpips bench sketch`: inserts per second into a CountMin sketch, and the errors of its estimates."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.bench import _runs
from mpips.bench._runs import note, summarize
from mpips.config.job_file import load
from mpips.data import DataSpec, resolve
from mpips.data.stream import line_blocks
from mpips.errors import InputError
from mpips.jit.kernel import kernel
from mpips.jobs.sketch import results, scan, source
from mpips.jobs.sketch.deltas import Deltas
from mpips.jobs.sketch.servers import shape_for
from mpips.jobs.sketch.source import Zipf
from mpips.rundir.progress import Column, share, si, significant

DESCRIPTION = """\
Inserts per second into a sketch of depth 4 and width 2^20. The time starts with the generated stream in memory, and
ends when the servers have every count. Afterwards the same stream is counted exactly in this process, and every key's
count is compared with its estimate.

  inserts/s     of all workers: median, minimum and maximum of the runs
  one core      the same work of one worker without servers, in this process; the limit is this times the cores
  too high      the largest difference between an estimate and the count; bound: e/width of all items
  beyond        the share of keys whose error exceeds the bound: at most e^-4 = 1.8 %
  too low       keys whose estimate is below the count: none
  top 100       how many of the 100 most frequent keys are among the top 100 of the sketch

  mpips bench sketch                                100 million keys, Zipf 1.1 and 1.3, 2 workers and 1 server
  mpips bench sketch --zipf 1.05 --items 1e7 --json sketch.json
  mpips bench sketch --train words.tsv.xz --set data.column=0 --set data.weight=1
"""

WIDTH, DEPTH, TOP = 1 << 20, 4, 100
COLUMNS = (
    Column("stream", "stream", 8),
    Column("items", "items", 6, si),
    Column("rate", "inserts/s", 6, si),
    Column("min", "least", 6, si),
    Column("max", "most", 6, si),
    Column("core", "one core", 6, si),
    Column("queries", "queries/s", 6, si),
    Column("keys", "keys", 6, si),
    Column("distinct", "estimated", 6, si),
    Column("over", "too high", 6, si),
    Column("bound", "bound", 6, significant(4)),
    Column("beyond", "beyond", 6, share),
    Column("below", "too low", 4),
    Column("top", "top 100", 4),
)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = _runs.common_parser("sketch", DESCRIPTION)
    positive = _runs.at_least(0.01, float)
    parser.add_argument(
        "--zipf", type=_runs.listed(positive), default=[1.1, 1.3], help="exponents; default 1.1,1.3"
    )
    parser.add_argument("--items", type=_runs.count, default=10**8, help="items of a stream; default 1e8")
    parser.add_argument(
        "--keys", type=_runs.count, default=10**8, help="number of distinct keys; default 1e8"
    )
    options = parser.parse_args(arguments)
    conditions = _runs.conditions()
    with _runs.folders(options.keep) as folder:
        if options.train:
            rows = [measure_files(options, folder)]
        else:
            rows = [measure_zipf(options, exponent, folder) for exponent in options.zipf]
    report = {
        "benchmark": "sketch",
        "conditions": conditions,
        "servers": options.servers,
        "workers": options.workers,
        "rows": rows,
    }
    print(f"{_runs.described(conditions)}\nservers {options.servers}, workers {options.workers}\n")
    print(_runs.table(COLUMNS, rows))
    _runs.write_report(options.json, report)
    return 0


def overrides(options: argparse.Namespace) -> list[str]:
    """Return the settings of every run; the user's come last."""
    shape = [f"sketch.depth={DEPTH}", f"sketch.width={WIDTH}", f"sketch.top={TOP}", "sketch.exact=1024"]
    return [f"layout.servers={options.servers}", f"layout.workers={options.workers}", *shape, *options.set]


def runs(
    options: argparse.Namespace, settings: Sequence[str], folder: Path, name: str
) -> list[_runs.FinishedRun]:
    """Run a job --repeat times."""
    done = []
    for number in range(options.repeat):
        note(f"{name}: run {number + 1} of {options.repeat}")
        done.append(
            _runs.run(
                _runs.job_file("job.toml", "sketch"), folder / f"{name}-{number}", settings, options.launcher
            )
        )
    return done


def measured(done: Sequence[_runs.FinishedRun]) -> dict[str, Any]:
    """Return the speed of some runs."""
    metrics = [run.result["metrics"] for run in done]
    rate = summarize(each["inserts_per_second"] for each in metrics)
    return {
        "items": metrics[0]["inserts"],
        "rate": rate["median"],
        "min": rate["min"],
        "max": rate["max"],
        "queries": summarize(each["queries_per_second"] for each in metrics)["median"],
        "distinct": metrics[0]["distinct"],
        "rates": [each["inserts_per_second"] for each in metrics],
    }


# --- A generated stream ----------------------------------------------------------------------------------------------


def measure_zipf(options: argparse.Namespace, exponent: float, folder: Path) -> dict[str, Any]:
    """Measure a Zipf stream, and compare the last run's sketch with exact counts."""
    stream = [f"sketch.zipf={exponent}", f"sketch.items={options.items}", f"sketch.keys={options.keys}"]
    settings = [*stream, "sketch.hold=true", "data.column=''", *overrides(options)]
    job = load(_runs.job_file("job.toml", "sketch"), settings)
    zipf = source.zipf_of(job.settings, job.seed)
    if zipf is None or not job.settings.hold:
        raise InputError("--set must not change sketch.zipf and sketch.hold")
    parts = job.data.parts or options.workers
    done = runs(options, settings, folder, f"zipf-{exponent:g}")
    note(f"zipf {exponent:g}: counting exactly")
    row = {
        "stream": f"Zipf {exponent:g}",
        "zipf": exponent,
        "core": single_core_rate(zipf, job.settings.conservative),
    }
    last = done[-1].folder
    return row | measured(done) | compare_with_exact(results.load(last), exact_counts(zipf, parts), last)


@kernel("void(u8[::1], i4[::1])")
def count_numbers(numbers: NDArray[np.uint64], counts: NDArray[np.int32]) -> None:
    """Count numbers."""
    for number in numbers:
        counts[number] += 1


def exact_counts(zipf: Zipf, parts: int) -> NDArray[np.int32]:
    """Count the numbers of a stream exactly: i4[keys + 1]."""
    counts = np.zeros(zipf.keys + 1, np.int32)
    for part in range(parts):
        number = 0
        while zipf.size(part, parts, number) > 0:
            for numbers in zipf.numbers(part, parts, number):
                count_numbers(numbers, counts)
            number += 1
    return counts


def compare_with_exact(sketch: results.Sketch, counts: NDArray[np.int32], folder: Path) -> dict[str, Any]:
    """Compare the estimate of every number in the stream with its count."""
    total, keys, over, beyond, below = int(counts.sum(dtype=np.int64)), 0, 0, 0, 0
    allowed = results.bound(sketch.width, total)
    for begin in range(0, len(counts), 1 << 20):
        numbers = np.flatnonzero(counts[begin : begin + (1 << 20)]).astype(np.uint64) + np.uint64(begin)
        true = counts[numbers.astype(np.int64)]
        scan.scramble(numbers)
        error = sketch.estimate(numbers) - true
        keys += len(error)
        over, beyond = max(over, int(error.max(initial=0))), beyond + int((error > allowed).sum())
        below += int((error < 0).sum())
    # Numbers above 2**16 are much rarer.
    first = np.argsort(counts[: 1 << 16], kind="stable")[::-1][:TOP].astype(np.uint64)
    scan.scramble(first)
    truth = {str(key) for key in first.tolist()}
    found = {name for name, _ in listed(folder)}
    return {
        "keys": keys,
        "over": over,
        "bound": allowed,
        "beyond": beyond / max(keys, 1),
        "below": below,
        "top": len(truth & found),
        "correct_total": bool((sketch.table.reshape(sketch.depth, -1).sum(1) == total).all()),
    }


def listed(folder: Path) -> list[tuple[str, int]]:
    """Read the most frequent keys of a run, and their estimates."""
    lines = (folder / "top.tsv").read_bytes().decode().split("\n")[:-1]
    parts = [line.rpartition("\t") for line in lines]
    return [(name, int(count)) for name, _, count in parts]


def single_core_rate(zipf: Zipf, conservative: bool) -> float:
    """Measure a worker's processing of batches in this process: items per second."""
    one = zipf._replace(items=min(zipf.items, zipf.batch))
    chunks = [chunk.keys for batch in one.batches(0, 1, 0) for chunk in batch]
    deltas, best = Deltas(shape_for(DEPTH, WIDTH, 1, 2), False, 1024, conservative), float("inf")
    for number in range(2):
        begin = perf_counter()
        for keys in chunks:
            deltas.add(keys, None)
        deltas.finish(0, number + 1)
        best = min(best, perf_counter() - begin)
    return one.items / best


# --- A stream of the user's own --------------------------------------------------------------------------------------


def measure_files(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Measure the user's own stream, and compare its top 100, and every key, with exact counts."""
    files = json.dumps(_runs.absolute(options.train))
    settings = [f"data.train={files}", "data.column=''", *overrides(options)]
    job = load(_runs.job_file("job.toml", "sketch"), settings)
    done = runs(options, settings, folder, "train")
    counts = count_keys(resolve(job.data, str(job.base)))
    words, true = list(counts), np.array(list(counts.values()))
    sketch = results.load(done[-1].folder)
    about = results.errors(sketch, source.hashes(words, True), true, int(true.sum()))
    top: list[dict[str, Any]] = [
        {"key": key, "estimate": count, "exact": counts[key]} for key, count in listed(done[-1].folder)
    ]
    least = min((count for _, count in counts.most_common(TOP)), default=0)
    return {
        "stream": Path(options.train[0]).name.partition(".")[0],
        **measured(done),
        "core": None,
        "keys": len(words),
        "over": about["max_overestimate"],
        "bound": about["bound"],
        "beyond": about["beyond_bound"],
        "below": about["underestimates"],
        "top": sum(each["exact"] >= least for each in top),
        "correct_total": bool((sketch.table.reshape(sketch.depth, -1).sum(1) == true.sum()).all()),
        "most_frequent": top,
    }


def count_keys(spec: DataSpec) -> Counter[str]:
    """Count the keys of text files in plain Python."""
    counts: Counter[str] = Counter()
    for path in spec.train:
        lines = _lines(path)
        columns = [spec.column, spec.weight]
        if any(isinstance(column, str) and column for column in columns):
            names = next(lines).split(spec.separator)
            columns = [
                names.index(column) if isinstance(column, str) and column else column for column in columns
            ]
        for line in lines:
            fields = [line] if columns[0] == "" else line.split(spec.separator)
            key = fields[columns[0] or 0]  # type: ignore[index]
            if key:
                counts[key] += int(fields[columns[1]]) if columns[1] != "" else 1  # type: ignore[index]
    return counts


def _lines(path: str) -> Iterator[str]:
    for block in line_blocks(path):
        for line in bytes(block).decode("utf-8", "surrogateescape").split("\n")[:-1]:
            if line.rstrip("\r"):
                yield line.rstrip("\r")

"""`mpips bench factorization`: ratings per second of the example of matrix factorization, beside a single process."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.bench import _runs
from mpips.bench._runs import note
from mpips.config.job_file import Job, load
from mpips.config.program import load_program
from mpips.errors import InputError
from mpips.jit.kernel import kernel
from mpips.rundir.progress import Column, seconds, si, significant

DESCRIPTION = """\
Train the example of matrix factorization, examples/matrix_factorization.toml, as `mpips run` does, and in one process:
a compiled loop over the same mini-batches, which takes their steps in its own arrays. Each round measures both. The
first pass is not counted.

  mpips bench factorization                      500,000 ratings, rank 16, 1 server and 1 worker, mini-batches of 10,000
  mpips bench factorization --set matrix_factorization.batch=1000 --set consistency.tau=0
"""
EXAMPLE = Path("examples", "matrix_factorization.toml")
COLUMNS = (
    Column("what", "", 24),
    Column("seconds", "of a pass", 9, seconds),
    Column("rate", "ratings/s", 9, si),
    Column("rmse", "rmse", 8, significant(5)),
)
F4 = NDArray[np.float32]
F8 = NDArray[np.float64]
U8 = NDArray[np.uint64]


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = _runs.job_parser("factorization", DESCRIPTION)
    parser.add_argument("--example", metavar="FILE", help=f"the example's job file; default {EXAMPLE}")
    parser.add_argument("--ratings", type=_runs.count, default=500_000, metavar="N", help="default 500,000")
    parser.add_argument("--passes", type=_runs.at_least(2), default=10, metavar="N", help="default 10")
    parser.add_argument("--servers", type=_runs.at_least(1), default=1, metavar="S", help="default 1")
    parser.add_argument("--workers", type=_runs.at_least(1), default=1, metavar="W", help="default 1")
    parser.add_argument("--repeat", type=_runs.at_least(1), default=3, metavar="N", help="rounds; default 3")
    options = parser.parse_args(arguments)
    path = Path(options.example or EXAMPLE)
    if not path.is_file():
        raise InputError(
            f"{path}: there is no such file; run in a checkout of mpips, or name it by --example"
        )
    settings = [
        f"layout.servers={options.servers}", f"layout.workers={options.workers}",
        f"matrix_factorization.ratings={options.ratings}", f"matrix_factorization.passes={options.passes}",
        *options.set,
    ]  # fmt: skip
    job = load(path, settings)
    module = load_program(job.program, job.base).module
    rounds: list[list[dict[str, Any]]] = []
    with tempfile.TemporaryDirectory() as temporary:
        for number in range(options.repeat):
            note(f"round {number + 1}: a single process")
            alone = single(module, job)
            note(f"round {number + 1}: {options.servers} servers and {options.workers} workers")
            run = _runs.run(
                path.absolute(), Path(options.keep or temporary, f"factorization-{number}"), settings,
                options.launcher,
            )  # fmt: skip
            passes = [each["seconds"] for each in _runs.events(run.folder, "pass")]
            together = measured("mpips", passes, run.result["metrics"]["rmse"], job.settings.ratings)
            rounds.append([alone, together])
    ratios = [together["rate"] / alone["rate"] for alone, together in rounds]
    report = {
        "benchmark": "factorization", "conditions": _runs.conditions(), "settings": settings,
        "rounds": rounds, "ratios": ratios, "ratio": statistics.median(ratios),
    }  # fmt: skip
    print(text(report))
    _runs.write_report(options.json, report)
    return 0


def measured(what: str, ends: Sequence[float], rmse: float, ratings: int) -> dict[str, Any]:
    """Return a row of the table, by the times at which passes ended."""
    each = (ends[-1] - ends[0]) / (len(ends) - 1)
    return {"what": what, "seconds": each, "rate": ratings / each, "rmse": rmse}


def single(module: ModuleType, job: Job) -> dict[str, Any]:
    """Train in this process, with the mini-batches of the example's only worker."""
    settings: Any = job.settings
    context = SimpleNamespace(index=0, count=1, base=job.base, job=job)
    worker = module.Worker(context)
    sizes = (int(ids.max()) + 1 for ids in (worker.users, worker.items))
    u, v = (
        np.ascontiguousarray(spec.initial(np.arange(size, dtype=np.uint64)), np.float32)
        for spec, size in zip(module.specs(settings), sizes, strict=True)
    )
    steps = [np.empty((settings.batch, settings.rank), np.float32) for _ in "uv"]
    ends, squares, begin = [], 0.0, perf_counter()
    for number in range(1, settings.passes + 1):
        squares = 0.0
        for users, items, ratings in worker.batches(number):
            squares += learn(u, v, users, items, ratings, settings.rate, settings.l2, *steps)
        ends.append(perf_counter() - begin)
    rmse = (squares / len(worker.ratings)) ** 0.5
    return measured("a single process", ends, rmse, len(worker.ratings))


@kernel("f8(f4[:, ::1], f4[:, ::1], u8[::1], u8[::1], f8[::1], f4, f4, f4[:, ::1], f4[:, ::1])")
def learn(
    u: F4, v: F4, users: U8, items: U8, ratings: F8, rate: float, l2: float, by_user: F4, by_item: F4
) -> float:
    """Take the steps of one mini-batch, whose gradients are all computed first; return the sum of squared errors."""
    squares = 0.0
    for i in range(len(ratings)):
        of_user, of_item, error = u[users[i]], v[items[i]], ratings[i]
        for j in range(len(of_user)):
            error -= of_user[j] * of_item[j]
        squares += error * error
        for j in range(len(of_user)):
            by_user[i, j] = l2 * of_user[j] - np.float32(error) * of_item[j]
            by_item[i, j] = l2 * of_item[j] - np.float32(error) * of_user[j]
    for i in range(len(ratings)):
        of_user, of_item = u[users[i]], v[items[i]]
        for j in range(len(of_user)):
            of_user[j] -= rate * by_user[i, j]
            of_item[j] -= rate * by_item[i, j]
    return squares


def text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    rows = [row for pair in report["rounds"] for row in pair]
    ratios = ", ".join(f"{ratio:.2f}" for ratio in report["ratios"])
    last = (
        f"ratings/s of mpips divided by those of a single process: {report['ratio']:.2f} (rounds: {ratios})"
    )
    return "\n".join([_runs.described(report["conditions"]), "", _runs.table(COLUMNS, rows), "", last])

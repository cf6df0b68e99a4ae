"""`mpips bench fm`: speed and quality of factorization machines, compared with one process."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.bench import _runs
from mpips.bench._runs import at_least, note
from mpips.bench.applications import _machine
from mpips.bench.applications._machine import Rows
from mpips.config.job_file import Job, load
from mpips.data import read, resolve, write
from mpips.data.examples import concatenate
from mpips.data.numbering import distinct
from mpips.rundir.progress import Column, seconds, si, significant

DESCRIPTION = """\
Test scores and examples per second of the job fm on flights, each column as it is, and on examples that a known machine
has labelled. In the same run: a machine in one process without messages, with the same settings; sparse_lr (ftrl) with
the same features; and the known machine itself. "limited" is fm with factors of the more frequent half of the features.
Examples/s of fm include reading the files in every pass, those of one process do not. Each round begins with other
factors, by job.seed; the AUC on flights differs by about 0.0014 (standard deviation) between them.

  mpips bench fm
  mpips bench fm --workers 8 --repeat 5 --examples 0
  mpips bench fm --train clicks.tsv --test last.tsv --workers 2
  mpips bench fm --set fm.factors=32 --examples 0
"""

COLUMNS = (
    Column("data", "data", 9, lambda text: str(text).ljust(9)),
    Column("model", "model", 12, lambda text: str(text).ljust(12)),
    Column("auc", "auc", 8, significant(5)),
    Column("logloss", "log-loss", 9, significant(5)),
    Column("factors", "with factors", 13, si),
    Column("seconds", "seconds", 9, seconds),
    Column("rate", "examples/s", 11, si),
)
TEACHER = ("fm.factors=4", "fm.passes=5", "fm.batch=1000")
"""Settings for the examples of a known machine, which has 4 factors."""


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = _runs.common_parser("fm", DESCRIPTION, repeat=1)
    parser.add_argument(
        "--examples", type=at_least(0), default=1_000_000, metavar="N",
        help="examples of a known machine; default 1000000, 0: none",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    settings = [each for each in _runs.overrides(options) if not each.startswith("data.crosses")]
    job_file, conditions = _runs.job_file("job.toml", "fm"), _runs.conditions()
    rows: list[dict[str, Any]] = []
    seed = load(job_file, settings).seed
    with _runs.folders(options.keep) as folder:
        for number in range(options.repeat):
            note(f"round {number + 1} of {options.repeat}")
            own = [*settings, f"job.seed={seed + number}"]
            rows += flights(job_file, folder / f"flights-{number}", own, options.launcher)
            if options.examples:
                rows += known(job_file, folder / f"known-{number}", own, options.launcher, options.examples)
    report = {"benchmark": "fm", "conditions": conditions, "rows": rows}
    print(text(report))
    _runs.write_report(options.json, report)
    return 0


def flights(job_file: Path, folder: Path, settings: Sequence[str], launcher: str) -> list[dict[str, Any]]:
    """Compare on the job's own data."""
    job = load(job_file, list(settings))
    train, test, features, often = numbered(job)
    note("one process")
    rows = [reference(job, train, test, features)]
    note("fm")
    rows.append(ran("fm", job_file, folder / "fm", settings, launcher))
    note("limited")
    admit = int(np.median(often)) + 1
    rows.append(ran("limited", job_file, folder / "limited", [*settings, f"fm.admit={admit}"], launcher))
    note("sparse_lr")
    linear = [each for each in settings if not each.startswith("fm.")]
    linear += [f"data.{name}={files(job, name)}" for name in ("train", "test")]
    linear += ["data.crosses=[]", f"sparse_lr.passes={job.settings.passes}"]
    rows.append(ran("sparse_lr", _runs.job_file("ftrl.toml"), folder / "linear", linear, launcher))
    return [{"data": "flights"} | row for row in rows]


def files(job: Job, name: str) -> str:
    """Return the files of the job's data, as a setting."""
    return str([str(path) for path in getattr(resolve(job.data, str(job.base)), name)])


def known(
    job_file: Path, folder: Path, settings: Sequence[str], launcher: str, examples: int
) -> list[dict[str, Any]]:
    """Compare on examples that a known machine has labelled."""
    from scipy.sparse import csr_array

    folder.mkdir(parents=True)
    held = examples // 4
    drawn, truth = _machine.made(examples + held)
    features = int(drawn.features.max()) + 1
    parts = part(drawn, 0, examples), part(drawn, examples, examples + held)
    for name, rows in zip(("train", "test"), parts, strict=True):
        ones = np.ones(len(rows.features), np.float32)
        whole = csr_array((ones, rows.features, rows.indptr), (len(rows.labels), features))
        write(folder / f"{name}.h5", whole, rows.labels.astype(np.int64))
    own = [*settings, *TEACHER, f"data.train='{folder}/train.h5'", f"data.test='{folder}/test.h5'"]
    found = [{"model": "itself"} | scored(truth[examples:], parts[1].labels)]
    note("one process")
    found.append(reference(load(job_file, own), *parts, features))
    note("fm")
    found.append(ran("fm", job_file, folder / "fm", own, launcher))
    return [{"data": "known"} | row for row in found]


def part(rows: Rows, begin: int, end: int) -> Rows:
    """Return some of the examples."""
    low, high = rows.indptr[begin], rows.indptr[end]
    return Rows(rows.labels[begin:end], rows.indptr[begin : end + 1] - low, rows.features[low:high])


def numbered(job: Job) -> tuple[Rows, Rows, int, NDArray[np.int64]]:
    """Read the training and test data; return them, the number of features, and how often each of them occurs."""
    spec = resolve(job.data, str(job.base))
    train, test = (concatenate(read(getattr(spec, name), spec)) for name in ("train", "test"))
    keys, features = distinct(np.concatenate([train.keys, test.keys]))
    cut = len(train.keys)
    often = np.bincount(features[:cut], minlength=len(keys))
    rows = Rows(train.labels, train.indptr, features[:cut]), Rows(test.labels, test.indptr, features[cut:])
    return *rows, len(keys), often[often > 0]


def reference(job: Job, train: Rows, test: Rows, features: int) -> dict[str, Any]:
    """Learn in this process; return the measurements."""
    begin = time.perf_counter()
    w, v = _machine.learn(train, features, job.settings, job.seed)
    elapsed = time.perf_counter() - begin
    found = np.empty(len(test.labels))
    _machine.scores(test.indptr, test.features, w, v, found)
    rate = len(train.labels) * job.settings.passes / elapsed
    row = {"model": "one process", "seconds": elapsed, "rate": rate, "factors": features}
    return row | scored(found, test.labels)


def scored(scores: NDArray[np.float64], labels: NDArray[np.float32]) -> dict[str, Any]:
    """Return AUC and log-loss."""
    from mpips.jobs.sparse_lr.evaluate import measures

    found = measures(scores, labels > 0.0)
    return {name: found[name] for name in ("auc", "logloss")}


def ran(model: str, job_file: Path, folder: Path, settings: Sequence[str], launcher: str) -> dict[str, Any]:
    """Run a job; return the measurements, of time those of all passes."""
    run = _runs.run(job_file, folder, settings, launcher)
    metrics, elapsed = run.result["metrics"], run.passes[-1]["seconds"]
    rate = metrics["examples"] * metrics["passes"] / elapsed
    row = {"model": model, "seconds": elapsed, "rate": rate, "factors": metrics.get("factors", 0)}
    return row | {name: metrics[name] for name in ("auc", "logloss")}


def text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    blank = {"factors": 0, "seconds": 0.0, "rate": 0.0}
    rows = [blank | row for row in report["rows"]]
    return "\n".join([_runs.described(report["conditions"]), "", _runs.table(COLUMNS, rows)])

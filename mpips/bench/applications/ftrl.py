"""`mpips bench ftrl`: throughput of online learning from disk, and its bottleneck."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mpips.bench import _runs
from mpips.bench._runs import FinishedRun, at_least, note, summarize
from mpips.bench.applications.memory import count_lines, write_lines
from mpips.config.job_file import Job, load
from mpips.data import Examples, format_of, minibatches, read, resolve
from mpips.data.stream import line_blocks
from mpips.rundir.progress import Column, seconds, share, si, significant
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec

DESCRIPTION = """\
Examples per second of FTRL on mini-batches, streamed from disk by all workers, and the bottleneck: each stage is also
run alone, in this process, on a sample of the same data.

  mpips bench ftrl                                         the project's own data, 10 passes
  mpips bench ftrl --train flights.train.tsv.xz --crosses  with the crosses of the project's own data
  mpips bench ftrl --train day_0.gz --train day_1.gz --passes 1 --workers 2
  mpips bench ftrl --set 'consistency.model="bounded"' --set consistency.tau=2
  mpips bench ftrl --set sparse_lr.batch=20000

With fewer files than workers, every worker decompresses all of them and takes its lines; with more, it reads only its
own files.
"""

STAGES = (
    Column("stage", "stage", 34, lambda text: str(text).ljust(34)),
    Column("seconds", "s per 1M examples", 17, significant(3)),
    Column("share", "of all", 6, share),
)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = _runs.common_parser("ftrl", DESCRIPTION)
    parser.add_argument("--passes", type=at_least(1), help="passes over the data; default 10, with --train 1")
    parser.add_argument(
        "--crosses", action="store_true", help="--train has the columns of the project's own data"
    )
    parser.add_argument(
        "--sample",
        type=at_least(1000),
        default=250_000,
        metavar="N",
        help="lines for the stages; default 250000",
    )
    options = parser.parse_args(arguments)
    settings = _runs.overrides(options)
    if options.crosses:
        settings.remove("data.crosses=[]")
    passes = options.passes or (1 if options.train else 10)
    settings += [f"sparse_lr.passes={passes}"]
    job_file, conditions = _runs.job_file("ftrl.toml"), _runs.conditions()
    job = load(job_file, settings)
    runs: list[FinishedRun] = []
    with _runs.folders(options.keep) as folder:
        note("each stage alone")
        stages = measure_stages(job, options.workers, options.sample, folder / "sample")
        for number in range(options.repeat):
            note(f"round {number + 1} of {options.repeat}")
            runs.append(_runs.run(job_file, folder / f"run-{number}", settings, options.launcher))
    report = {
        "benchmark": "ftrl",
        "conditions": conditions,
        "consistency": {"model": job.consistency.model, "tau": job.consistency.tau},
        "batch": job.settings.batch,
        "layout": runs[0].result["layout"],
        "runs": [measured(run) for run in runs],
        "stages": stages,
    }
    report["ceilings"] = ceilings(report)
    print(text(report))
    _runs.write_report(options.json, report)
    return 0


def measured(run: FinishedRun) -> dict[str, Any]:
    """Return the measurements of a run: its speed over all passes, without the final scoring of the training data."""
    elapsed, metrics = run.passes[-1]["seconds"], run.result["metrics"]
    examples = metrics["examples"] * metrics["passes"]
    keys = ("auc", "logloss", "nonzeros", "passes")
    return {
        "examples": examples,
        "seconds": elapsed,
        "examples_per_second": examples / elapsed,
        "waiting": _runs.waiting(run),
        "sent": run.sent,
    } | {key: metrics[key] for key in keys}


# --- The stages, each alone ------------------------------------------------------------------------------


def measure_stages(job: Job, workers: int, sample: int, file: Path) -> dict[str, float]:
    """Run every stage alone on the first lines of the training data; return seconds per million examples.

    "unpack" and "parse" are times of one worker for its part of a million examples; the others are for all of them.
    """
    spec = resolve(job.data, str(job.base))
    divided = len(spec.train) < workers
    lines = min(sample, count_lines(spec))
    timings: dict[str, float] = {"unpack": timed(lambda: decompress_lines(spec.train, lines))}
    file = file.with_suffix(".tsv" if format_of(spec.train[0], spec) == "tsv" else ".svm")
    write_lines(spec, lines, file)
    alone = replace(spec, train=[str(file)], test=[])
    for batch in read([str(file)], alone):
        # Loads the kernels.
        learn(job, [batch.rows(0, min(100, len(batch)))])
        break
    parts = workers if divided else 1
    timings["parse"] = timed(lambda: sum(len(batch) for batch in read([str(file)], alone, 0, parts)))
    # Each worker decompresses and parses only its own files.
    if not divided:
        timings["unpack"] /= workers
        timings["parse"] /= workers
    batches = list(minibatches(read([str(file)], alone), job.settings.batch))
    file.unlink()
    timings |= learn(job, batches)
    examples = sum(len(batch) for batch in batches)
    return {stage: value / examples * 1e6 for stage, value in timings.items()}


def timed(work: Callable[[], Any]) -> float:
    """Return the seconds that `work` takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def decompress_lines(files: Sequence[str], lines: int) -> None:
    """Unpack about so many lines, and discard them."""
    for path in files:
        for block in line_blocks(path):
            lines -= block.count(b"\n")
            if lines <= 0:
                return


def learn(job: Job, batches: Sequence[Examples]) -> dict[str, float]:
    """Learn from mini-batches in this process, without messages; return the seconds of every stage."""
    from mpips.data.numbering import distinct
    from mpips.jobs.sparse_lr import kernels

    numbers = {name: getattr(job.settings, name) for name in ("alpha", "beta", "l1", "l2")}
    segment = Segment(VectorSpec("w", update="ftrl", settings=numbers))
    timings = dict.fromkeys(("unique", "pull", "gradient", "push"), 0.0)
    for batch in batches:
        clock = stopwatch()
        keys, positions = distinct(batch.keys)
        timings["unique"] += next(clock)
        weights = np.ascontiguousarray(segment.pull(keys).reshape(-1))
        timings["pull"] += next(clock)
        gradient = np.empty(len(keys))
        values = np.empty(0, np.float32) if batch.values is None else batch.values
        kernels.batch_gradient(batch.indptr, positions, values, batch.labels, weights, gradient)
        timings["gradient"] += next(clock)
        segment.push(keys, gradient.reshape(-1, 1))
        timings["push"] += next(clock)
    return timings


def stopwatch() -> Iterator[float]:
    """Return a generator whose next value is the seconds since the one before."""

    def laps() -> Iterator[float]:
        before = time.perf_counter()
        while True:
            now = time.perf_counter()
            yield now - before
            before = now

    clock = laps()
    next(clock)
    return clock


# --- The bottleneck ---------------------------------------------------------------------------------------


def ceilings(report: dict[str, Any]) -> dict[str, float]:
    """Return the limit of examples per second by each resource, if messages cost nothing."""
    stages, layout = report["stages"], report["layout"]
    servers, workers, cores = layout["servers"], layout["workers"], report["conditions"]["cores"]
    worker = stages["parse"] + (stages["unique"] + stages["gradient"]) / workers
    server = (stages["pull"] + stages["push"]) / servers
    everything = workers * (stages["unpack"] + worker) + servers * server
    return {
        "unpacking, in a thread of each worker": 1e6 / stages["unpack"],
        "parsing, unique keys and gradients of each worker": 1e6 / worker,
        "pulls and pushes at each server": 1e6 / server,
        f"all of it on {cores} cores": cores * 1e6 / everything,
    }


def text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    stages, layout, runs = report["stages"], report["layout"], report["runs"]
    servers, workers, cores = layout["servers"], layout["workers"], report["conditions"]["cores"]
    rate = summarize(run["examples_per_second"] for run in runs)
    wait = summarize(run["waiting"] for run in runs)["median"]
    work = {
        "unpack (every worker)": workers * stages["unpack"],
        "parse (every worker, its part)": workers * stages["parse"],
        "unique keys of a mini-batch": stages["unique"],
        "gradient": stages["gradient"],
        "pull, at the server": stages["pull"],
        "push, at the server": stages["push"],
    }
    spent = cores / rate["median"] * 1e6
    rows = [{"stage": name, "seconds": value, "share": value / spent} for name, value in work.items()]
    rest = spent - sum(work.values())
    rows.append({"stage": "messages, waiting, idle cores", "seconds": rest, "share": rest / spent})
    rows.append({"stage": f"{cores} cores, as measured", "seconds": spent, "share": 1.0})
    consistency = report["consistency"]
    model = consistency["model"] + (
        f", tau {consistency['tau']}" if consistency["model"] == "bounded" else ""
    )
    bound, ceiling = min(report["ceilings"].items(), key=lambda item: item[1])
    auc = runs[0]["auc"]
    lines = [
        _runs.described(report["conditions"]),
        f"servers {servers}, workers {workers}; {model}; mini-batches of {report['batch']:,}",
        "",
        f"{si(rate['median'])} examples/s (min {si(rate['min'])}, max {si(rate['max'])}): "
        f"{si(runs[0]['examples'])} examples in {seconds(summarize(run['seconds'] for run in runs)['median'])}, "
        f"{runs[0]['passes']} passes; workers waiting {share(wait)}",
        *([f"test AUC {auc:.4f}, log-loss {runs[0]['logloss']:.4f}"] if auc is not None else []),
        "",
        _runs.table(STAGES, rows),
        "",
        "limits, if messages cost nothing:",
        *(f"  {si(value):>6} examples/s  {name}" for name, value in report["ceilings"].items()),
        f"the lowest limit: {bound}; measured {share(rate['median'] / ceiling)} of it",
        *(
            ["the bottleneck: messages, waiting and idle cores, more than all work"]
            if rest > spent / 2
            else []
        ),
    ]
    return "\n".join(lines)

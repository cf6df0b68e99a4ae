"""`mpips bench ctr`: clicks per second of a recommendation model in PyTorch, beside PyTorch alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np

from mpips.bench import _runs
from mpips.bench._runs import note
from mpips.config.job_file import load
from mpips.errors import InputError
from mpips.rundir.progress import Column, si, significant

DESCRIPTION = """\
Clicks per second of training the network of jobs/ctr, by one server and one worker, and by a single process of PyTorch
with its own sparse embedding and optimisers, which uses all cores; alternately. It has the same mini-batches, but its
ids are numbered before, and other random rows to begin with.

  mpips bench ctr                                           200,000 generated clicks, 2 passes
  mpips bench ctr --train clicks.npz --test later.npz       see jobs/ctr/README.md
  mpips bench ctr --workers 4 --set consistency.tau=4 --set ctr.batch=4096
"""

COLUMNS = (
    Column("by", "trained by", 14),
    Column("rate", "clicks/s", 9, si),
    Column("auc", "test AUC", 9, significant(5)),
    Column("loss", "mean loss", 10, significant(5)),
    Column("ratio", "of PyTorch", 10, significant(3)),
)


def main(arguments: Sequence[str]) -> int:
    """Run the benchmark."""
    parser = _runs.common_parser("ctr", DESCRIPTION)
    parser.set_defaults(workers=1)
    options = parser.parse_args(arguments)
    settings = _runs.overrides(options)
    ours: list[dict[str, Any]] = []
    theirs: list[dict[str, Any]] = []
    with _runs.folders(options.keep) as folder:
        for number in range(options.repeat):
            note(f"run {number + 1} of {options.repeat}")
            ours.append(trained(settings, folder / str(number), options.launcher))
            theirs.append(alone(settings))
    rows: list[dict[str, Any]] = [
        {
            "by": by,
            **{name: median(run[name] for run in runs) for name in runs[0] if runs[0][name] is not None},
        }
        for by, runs in (("mpips", ours), ("PyTorch alone", theirs))
    ]
    for row in rows:
        row["ratio"] = row["rate"] / rows[1]["rate"]
    report: dict[str, Any] = {
        "benchmark": "ctr",
        "conditions": _runs.conditions(),
        "settings": settings,
        "rows": rows,
    }
    print(f"{_runs.described(report['conditions'])}\n{' '.join(settings)}; medians of {options.repeat}\n")
    print(_runs.table(COLUMNS, rows))
    _runs.write_report(options.json, report)
    return 0


def trained(settings: Sequence[str], folder: Path, launcher: str) -> dict[str, Any]:
    """Run the job; return its rate, and what it came to."""
    run = _runs.run(_runs.job_file(program="ctr"), folder, settings, launcher)
    metrics = run.result["metrics"]
    rate = metrics["clicks"] / run.result["seconds"]["train"]
    return {"rate": rate, "auc": metrics["auc"], "loss": metrics["loss"]}


def alone(settings: Sequence[str]) -> dict[str, Any]:
    """Train in this process; return the rate, and what it came to."""
    try:
        import torch
    except ModuleNotFoundError as error:
        raise InputError(f"the benchmark needs PyTorch: pip install torch ({error})") from None
    from mpips.jobs.ctr import clicks as data
    from mpips.jobs.ctr.model import begun, loss_of
    from mpips.jobs.sparse_lr.evaluate import measures

    job = load(_runs.job_file(program="ctr"), settings)
    own = job.settings
    train, test = data.of_job(job)
    count = len(train.labels)
    distinct, places = np.unique(np.concatenate([train.ids, test.ids]), return_inverse=True)
    ids = torch.from_numpy(places.reshape(-1, train.ids.shape[1]))
    network = begun(train.numbers.shape[1], train.ids.shape[1], own.width, own.hidden, own.seed)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    # As by default; said, since it warns otherwise.
    torch.sparse.check_sparse_tensor_invariants.disable()
    rows = torch.nn.Embedding(len(distinct), own.width, sparse=True)
    torch.nn.init.normal_(rows.weight, 0.0, 0.05)
    steps = -(-count // own.batch)
    optimisers = (
        torch.optim.Adagrad(rows.parameters(), lr=own.alpha, eps=1e-6),
        torch.optim.Adam(network.parameters(), lr=own.rate),
    )
    begin = perf_counter()
    for number in range(own.passes):
        order, total = np.random.default_rng([number, 0]).permutation(count), 0.0
        for step in range(steps):
            chosen = order[step::steps]
            batch = train.at(chosen)
            loss = loss_of(network(batch.numbers, rows(ids[torch.from_numpy(chosen)])), batch)
            for each in optimisers:
                each.zero_grad()
            loss.backward()
            for each in optimisers:
                each.step()
            total += loss.item() * len(chosen)
    seconds = perf_counter() - begin
    with torch.no_grad():
        scores = network(test.numbers, rows(ids[count:])).numpy()
    auc = measures(scores.astype(float), test.labels > 0)["auc"]
    return {"rate": own.passes * count / seconds, "auc": auc, "loss": total / count}

"""Checks of the data, the progress table, test metrics, and export of the model."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from dataclasses import asdict, fields
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import Answer, Cluster, ConsistencySpec, Context, InputError, exact_sums, progress, replacing
from mpips import keys as key_arrays
from mpips.data import EncodingTable, Examples, Source, Tally
from mpips.data.numbering import distinct
from mpips.jobs.sparse_lr import kernels
from mpips.jobs.sparse_lr.control import Control

COLUMNS = (
    progress.Column("pass", "pass", 5),
    progress.Column("seconds", "seconds", 8, progress.seconds),
    progress.Column("objective", "objective", 14, progress.significant(9)),
    progress.Column("change", "change", 9, progress.significant(2)),
    progress.Column("nonzeros", "nonzeros", 9, progress.si),
    progress.Column("active", "active", 8, progress.si),
    progress.Column("blocks", "blocks", 7),
    progress.Column("examples/s", "examples/s", 10, progress.si),
    progress.Column("waiting", "waiting", 11, progress.shares),
    progress.Column("sent", "sent", 9, progress.bytes_si),
    progress.Column("unfiltered", "instead of", 10, progress.bytes_si),
)
GAP = progress.Column("restricted_gap", "gap", 8, progress.significant(2))
"""The column of the restricted gap, of runs that stop by it."""
UNPROVEN = 0.1
"""The relative gap when there is no useful dual bound, and the restricted gap when F may be far above its minimum."""
OUTLYING = 1e4
"""Largest ratio of a feature's max |x| to the mean of its other |x|; beyond it, its weight changes too slowly."""
MOST_BLOCKS_AHEAD = 63
"""Delay for which blocks are cut if the delay is not bounded."""
ADVICE = 'Scale features to about 1, lower [sparse_lr] alpha, or use algorithm = "darlin"'
"""What helps where training diverges."""
MODEL, TEXT = "model.npz", "model.txt"
"""The files of the weights."""


class Data(NamedTuple):
    """Totals of all workers' parts.

    The number of examples (of hashed columns that are learnt online: of those read before training), the end of the
    keys, the approximate number of features, whether all values are one, max |x| (if sums are exact), and the smallest
    and the largest of the features' max |x|, each on any one worker; and the largest ratio of a feature's max |x| to
    the mean of its other |x|.
    """

    examples: int
    extent: int
    features: int
    ones: bool
    largest: float = 0.0
    least: float = 1.0
    most: float = 1.0
    outlying: float = 1.0

    @property
    def wide(self) -> bool:
        """Return whether the workers' rows exceed the range of float32."""
        return self.least < kernels.SMALL or self.most > kernels.LARGE


def check_shards(cluster: Cluster, facts: list[dict[str, Any]], first: bool) -> Data:
    """Return the workers' totals; the first time, check that each has examples, and report what was skipped."""
    examples = sum(each["examples"] for each in facts)
    empty = [number for number, each in enumerate(facts) if each["examples"] == 0]
    if examples == 0:
        raise InputError(f"[data] train holds no examples: {cluster.job.data.train}")
    if empty and first:
        raise InputError(
            f"worker {empty[0]} has no examples: {examples} examples in {cluster.job.data.train} "
            f"are too few for {len(facts)} workers; use fewer workers"
        )
    if first:
        say(cluster, facts)
    if all("fingerprint" in each for each in facts):
        positive, mark = (sum(each[name] for each in facts) for name in ("positive", "fingerprint"))
        check_positive(cluster, positive)
        cluster.facts["training data"] = f"{examples} examples, {positive} positive, #{mark % 2**64:016x}"
    extremes = [each["extremes"] for each in facts if "extremes" in each] or [(1.0, 1.0)]
    return Data(
        examples,
        max(each["last"] for each in facts) + 1,
        max(each["features"] for each in facts),
        all(each["ones"] for each in facts),
        max(each.get("largest", 0.0) for each in facts),
        min(each[0] for each in extremes),
        max(each[1] for each in extremes),
        max(each.get("outlying", 1.0) for each in facts),
    )


def check_positive(cluster: Cluster, positive: int) -> None:
    """Raise InputError if no training example has the label that [data] positive names: `positive` have it."""
    data = cluster.job.data
    if not positive and data.positive_label is not None:
        raise InputError(
            f"[data] positive = {data.positive_label!r}: no example in {data.train} has this label, column "
            f"{data.label!r}; is it written in another way there?"
        )


def say(cluster: Cluster, facts: list[dict[str, Any]], data: str = "train") -> None:
    """Report unexpected contents of the "train" or "test" data, from a `Tally` (as a table) of each worker."""
    names = [each.name for each in fields(Tally)]
    tally = Tally()
    for each in facts:
        tally.add(Tally(**{name: each[name] for name in names}))
    for line, event, more in tally.remarks():
        cluster.say(line if data == "train" else f"{data} data: {line}")
        cluster.event(event, **more, data=data)


def delay(spec: ConsistencySpec) -> int:
    """Return the delay for which blocks are cut."""
    if spec.is_sequential:
        return 0
    return spec.tau if spec.model == "bounded" else MOST_BLOCKS_AHEAD


def columns(gap: bool) -> tuple[progress.Column, ...]:
    """Return the columns of the progress table; `gap`: the run stops by the restricted gap."""
    return (*COLUMNS[:4], GAP, *COLUMNS[4:]) if gap else COLUMNS


def show_pass(
    cluster: Cluster, table: progress.Table, ctl: Control, now: dict[str, Any], examples: int
) -> None:
    """Write a pass to the table and to `metrics.jsonl`."""
    objective, before = ctl.objectives[-1], ctl.objectives[-2]
    number, seconds = len(ctl.objectives) - 1, cluster.trained
    facts = {"pass": number, "seconds": seconds, "objective": objective}
    facts |= {name: now[name] for name in ("nonzeros", "active", "filtered", "blocks")}
    facts |= {name: now[name] for name in ("restricted_gap",) if name in now}
    waiting = sum(now["waiting"]) / len(now["waiting"])
    cluster.event("pass", **facts, theta=ctl.theta, waiting=waiting)
    change = (before - objective) / max(abs(objective), 1e-300)
    rate = examples * number / max(seconds, 1e-9)
    table.row(now | facts | {"change": change, "examples/s": rate})


class Scorer:
    """Scores examples, for a worker."""

    def __init__(self, context: Context, data: Source) -> None:
        self.context, self.data = context, data

    def check_test_data(self, part: int, of: int, encoding: EncodingTable | None = None) -> None:
        """Read the first examples of one part of the test files, to report bad files before training."""
        self.data.take(encoding)
        for path in self.data.spec.test[part::of]:
            next(self.data.read([path], 0, 1, Tally()), None)

    def score(self, which: str, part: int, of: int) -> Answer:
        """Return (x.w, label) of one part of the "train" or "test" data, f8[n, 2], and its `Tally`."""
        rows, tally = [np.empty((0, 2))], Tally()
        for batch in self.context.polling(self.data.read(which, part, of, tally)):
            values = np.empty(0, np.float32) if batch.values is None else batch.values
            rows.append(np.column_stack([self.scores(batch, values), batch.labels]))
        return Answer(asdict(tally), np.concatenate(rows))

    def scores(self, batch: Examples, values: NDArray[np.float32]) -> NDArray[np.float64]:
        """Return x.w of examples, f8[n]; `values`: theirs, or empty if all are one."""
        keys, positions = distinct(batch.keys)
        scores = np.empty(len(batch))
        kernels.predict(batch.indptr, positions, values, pull_weights(self.context, keys), scores)
        return scores

    def training_loss(self, part: int, of: int) -> dict[str, float]:
        """Return the sum of the log-losses of one part of the training data."""
        rows = self.score("train", part, of).values
        assert rows is not None
        return {"loss": float(log_losses(rows[:, 0] * rows[:, 1]).sum())}


def pull_weights(context: Context, keys: key_arrays.KeyArray) -> NDArray[np.float64]:
    """Pull w of sorted keys; keys beyond the vector's extent, which did not occur in training, have weight 0."""
    vector = context.vectors["w"]
    known = int(np.searchsorted(key_arrays.upper(keys), np.uint64(vector.spec.extent - 1), "right"))
    weights = np.zeros(len(keys))
    weights[:known] = vector.pull(keys[:known]).result()
    return weights


def other_keys(about: dict[str, Any]) -> str:
    """Return why the weights of a checkpoint do not fit the keys of the job's data; "" if they do."""
    changed = about.get("other reading", {}).get("key_bits")
    return f"{changed}: set it as it was, or start a new run" if changed else ""


def parts_of(cluster: Cluster) -> list[dict[str, Any]]:
    """Assign each worker a part of some data, in any order."""
    count = len(cluster.workers)
    return [{"part": part, "of": count} for part in range(count)]


def test(cluster: Cluster) -> dict[str, Any]:
    """Score the test data; return auc, accuracy and logloss (None without test data)."""
    if not cluster.job.data.test:
        return {"auc": None, "accuracy": None, "logloss": None}
    asking = cluster.workers.start("score", {"which": "test"}, each=parts_of(cluster))
    scored = asking.result()
    rows = np.concatenate([each.values for each in scored])
    if not len(rows):
        raise InputError(f"[data] test holds no examples: {cluster.job.data.test}")
    # The column names were printed at the start.
    say(cluster, [each.meta | {"header": ""} for each in scored], data="test")
    if infinite := int(np.count_nonzero(~np.isfinite(rows[:, 0]))):
        raise InputError(
            f"[data] test: the scores of {infinite:,} of {len(rows):,} examples are not finite: their values are too "
            "large, or those of the model; scale them as in the training data"
        )
    return measures(rows[:, 0], rows[:, 1] > 0.0)


def summary(metrics: dict[str, Any], optimum: float) -> str:
    """Return a summary of the run's metrics, one or two lines."""
    text = f"{metrics['nonzeros']:,} non-zeros, {metrics['passes']} passes"
    if metrics.get("objective") is not None:
        text = f"objective {metrics['objective']:.6f}, {text}"
    if metrics.get("restricted_gap") is not None:
        text += f", restricted gap {100.0 * metrics['restricted_gap']:.2g} %"
    if metrics.get("converged") is False:
        text += f": not converged, ended by {metrics['ended_by']}"
    if metrics.get("unproven"):
        text += (
            "\nwarning: F settled, but nothing proves that it is near the optimum: "
            f"gap {metrics['gap'] or math.inf:.2g}. A smaller sparse_lr.epsilon continues. "
            "Features with a few values far beyond their others slow it down: clip those, or scale; so do "
            "features that are nearly equal: leave out all but one, or raise l1"
        )
    if optimum > 0.0 and metrics.get("objective") is not None:
        excess = metrics["objective"] / optimum - 1.0
        text += f"\nknown optimum {optimum:.6f}: reached to within {100.0 * excess:.4f} %"
    scores = [name for name in ("auc", "accuracy", "logloss") if metrics.get(name) is not None]
    if scores:
        text += "\ntest data: " + ", ".join(f"{name} {metrics[name]:.4f}" for name in scores)
    return text


def measures(scores: NDArray[np.float64], positive: NDArray[np.bool_]) -> dict[str, Any]:
    """Return the area under the ROC curve (ties count half), accuracy at 0 and mean log-loss of scores f8[n]."""
    n, positives = len(scores), int(positive.sum())
    if n == 0:
        return {"auc": None, "accuracy": None, "logloss": None}
    order = np.argsort(scores, kind="stable")
    ordered = scores[order]
    first = np.searchsorted(ordered, ordered, "left")
    last = np.searchsorted(ordered, ordered, "right")
    ranks = (first + last + 1) / 2.0
    pairs = positives * (n - positives)
    wins = float(ranks[positive[order]].sum()) - positives * (positives + 1) / 2.0
    margins = np.where(positive, scores, -scores)
    return {
        "auc": wins / pairs if pairs else None,
        "accuracy": float(((scores > 0.0) == positive).mean()),
        # The same for any order of the examples.
        "logloss": exact_sums.ExactSum(log_losses(margins)).value() / n,
    }


def log_losses(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return log(1 + exp(-margin)) of margins f8[n], without overflow."""
    return np.log1p(np.exp(-np.abs(margins))) + np.maximum(-margins, 0.0)


def export_model(cluster: Cluster, encoding: EncodingTable | None) -> dict[str, Any]:
    """Write the non-zero weights as `model.npz` (keys, values) and `model.txt` (a line key:value each).

    The former also names its program, and has the encoding of tables, as JSON.
    """
    pieces = list(cluster.export(cluster.vectors["w"]))
    dtype = cluster.vectors["w"].spec.key_dtype
    keys = np.concatenate([np.empty(0, dtype), *(keys for keys, _ in pieces)])
    values = np.concatenate([np.empty(0), *(rows[:, 0] for _, rows in pieces)])
    folder = cluster.folder.path
    model = {"model": str(folder / MODEL)}
    with replacing(folder / MODEL) as file:
        more: dict[str, Any] = {} if encoding is None else {"encoding": np.array(json.dumps(encoding))}
        more |= {"program": np.array("sparse_lr")}
        np.savez_compressed(file, keys=key_arrays.pairs(keys), values=values, **more)
    # Before the text is written, which may fail: the model is complete without it.
    cluster.metrics.update(model)
    numbers = key_arrays.numbers(keys)
    lines = (f"{key}:{value!r}\n" for key, value in zip(numbers, values.tolist(), strict=True))
    with replacing(folder / TEXT, "w") as text:
        text.writelines(lines)
    return model


def check_training(cluster: Cluster, examples: int, advice: str = ADVICE, most: float = 1.0) -> None:
    """Check that training has improved the model; `examples`: those that the objective is of.

    `advice` ends the error; `most` is the largest F, as a multiple of that of w = 0.

    Raises:
        InputError: F is not finite, or too large. The model is kept under another name.
    """
    objective, nothing = cluster.metrics.get("objective"), examples * math.log(2.0)
    if objective is None or cluster.stopped_early or objective <= most * nothing * (1.0 + 1e-9):
        return
    for name in (MODEL, TEXT):
        path = cluster.folder.path / name
        # Missing if the disk was full, or if a previous leader has renamed it.
        with suppress(FileNotFoundError):
            path.replace(path.with_name(f"diverged.{name}"))
    cluster.metrics["model"] = str(cluster.folder.path / f"diverged.{MODEL}")
    raise InputError(
        f"training diverged: the objective is {objective:.6g}, and {nothing:.6g} with all weights 0; the model is kept "
        f"as {cluster.metrics['model']}. {advice}"
    )

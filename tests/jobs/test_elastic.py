"""Sparse logistic regression while workers are lost, join and leave: the same optimum, no work done twice."""

from __future__ import annotations

import json
import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from simulated import simulate
from synthetic import F8, DataSet, job_of, make, objective, optimum, svmlight

from mpips.checkpoint.manifest import complete
from mpips.config.program import load_program
from mpips.data import Columns, Examples, SameFiles, Tally, load_columns
from mpips.errors import MpipsError, NoWorkerLeft
from mpips.jobs.sparse_lr import online
from mpips.jobs.sparse_lr.assignment import WorkerData
from mpips.jobs.sparse_lr.blocks import joined
from mpips.jobs.sparse_lr.online import Learner
from mpips.rundir.folder import RunFolder
from mpips.scheduler.scheduler import Cluster
from mpips.transport.network_faults import Fault, no_delay, random_delays

SEQUENTIAL = {"model": "sequential"}
BOUNDED = {"model": "bounded", "tau": 4}
EVERY = 16
"""Entries of the scheduler's journal that a snapshot replaces: those of few passes."""


@dataclass
class Run:
    """The outcome of a job on the twin: `reads` are the parts that were read, (rank, parts), in order."""

    metrics: dict[str, Any] = field(default_factory=dict)
    sha: str = ""
    log: list[dict[str, Any]] = field(default_factory=list)
    reads: list[tuple[int, list[int]]] = field(default_factory=list)
    posted: int = 0
    weights: F8 = field(default_factory=lambda: np.zeros(0))
    stopped: bool = False

    def of(self, event: str) -> list[dict[str, Any]]:
        return [each for each in self.log if each["event"] == event]


def run(
    train: DataSet | list[Path],
    *,
    on_event: Callable[[Cluster, str, dict[str, Any]], None] = lambda *_: None,
    checkpoints: Path | None = None,
    resume: Path | None = None,
    layout: dict[str, Any] | None = None,
    faults: Sequence[Fault] = (),
    delays: Any = no_delay,
    seed: int = 0,
    replicas: int = 0,
    **tables: dict[str, Any],
) -> Run:
    """Run a job; `layout` is its table; `on_event(cluster, name, facts)` is called with each line of metrics.jsonl."""
    out, observed = Run(), dict[str, Any]()
    layout = {"servers": 2, "workers": 3, **(layout or {})}
    files = [str(train.train)] if isinstance(train, DataSet) else [str(path) for path in train]
    test = {"test": str(train.test)} if isinstance(train, DataSet) else {}
    with tempfile.TemporaryDirectory() as temporary, pytest.MonkeyPatch.context() as patch:
        folder = Path(temporary)
        tables = {
            "job": {"program": "sparse_lr"}, "layout": layout,
            "data": {"train": files, **test, **tables.pop("data", {})},
            "sparse_lr": tables.pop("settings", {}), **tables,
        }  # fmt: skip
        job = job_of(folder / "job", tables)
        loaded = load_program(job.program, job.base)
        read = WorkerData._examples

        def watched(self: Any, parts: list[int], cut: Any, tally: Tally) -> Any:
            out.reads.append((self.context.rank, parts))
            return read(self, parts, cut, tally)

        patch.setattr(WorkerData, "_examples", watched)

        def schedule(cluster: Cluster) -> None:
            cluster.checkpoints, cluster.resume = checkpoints or folder / "checkpoints", resume
            event = cluster.event

            def heard(name: str, **facts: Any) -> None:
                event(name, **facts)
                on_event(cluster, name, facts)

            cluster.event = heard  # type: ignore[method-assign]
            out.metrics = loaded.schedule(cluster, job.settings)
            out.sha = cluster.digest(cluster.vectors["w"])
            out.stopped = cluster.stopped_early
            lines = RunFolder(folder / "run").metrics.read_text().splitlines()
            out.log = [json.loads(line) for line in lines]
            with np.load(folder / "run" / "model.npz") as model:
                if isinstance(train, DataSet):
                    out.weights = np.zeros(len(train.keys))
                    out.weights[np.searchsorted(train.keys, model["keys"])] = model["values"]

        (folder / "run").mkdir()
        counts = {name: layout[name] for name in ("spares", "schedulers") if name in layout}
        simulate(
            schedule, loaded.worker, servers=layout["servers"], workers=layout["workers"], **counts, job=job,
            folder=folder / "run", faults=faults, delays=delays, seed=seed, replicas=replicas, observed=observed,
            compacted_every=EVERY,
        )  # fmt: skip
    out.posted = observed["network"].posted
    return out


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), "binary", n=120, m=24)


@pytest.fixture(scope="module")
def best(data_set: DataSet) -> float:
    return optimum(data_set.x, data_set.y, 1.0)


def is_optimal(outcome: Run, data_set: DataSet, best: float) -> None:
    found = outcome.metrics["objective"]
    assert found <= 1.001 * best
    assert found == pytest.approx(objective(outcome.weights, data_set.x, data_set.y, 1.0), rel=1e-9)
    margins = data_set.test_y * (data_set.test_x @ outcome.weights)
    assert outcome.metrics["logloss"] == pytest.approx(np.logaddexp(0.0, -margins).mean(), rel=1e-9)


def workers_of(servers: int, workers: int, schedulers: int = 1) -> list[int]:
    return [schedulers + servers + index for index in range(workers)]


# --- Losses at any instant ---------------------------------------------------------------------------------


@pytest.mark.drawn(2)
@pytest.mark.parametrize("seed", range(4))
def test_a_worker_is_lost_at_any_instant(data_set: DataSet, best: float, seed: int) -> None:
    rng = random.Random(seed)
    servers, workers, spares = rng.randint(1, 3), rng.randint(2, 4), rng.randint(0, 1)
    layout = {"servers": servers, "workers": workers, "spares": spares}
    how = {"layout": layout, "consistency": rng.choice([SEQUENTIAL, BOUNDED]), "checkpoint": {"every": 3}}
    plain = run(data_set, **how)
    victim = rng.choice(workers_of(servers, workers))
    fault = Fault("kill", victim, after_messages=rng.randrange(plain.posted))
    outcome = run(data_set, **how, faults=[fault], delays=random_delays(seed, delay=0.002), seed=seed)
    is_optimal(outcome, data_set, best)
    changes = outcome.of("workers")
    assert changes in (
        [],  # it was lost when nobody asked for it any more
        [
            {
                "event": "workers",
                "gone": [victim],
                "come": [max(workers_of(servers, workers)) + 1],
                "workers": workers,
            }
        ]
        if spares
        else [{"event": "workers", "gone": [victim], "come": [], "workers": workers - 1}],
    )


def test_all_but_one_are_lost_one_after_the_other(data_set: DataSet, best: float) -> None:
    plain = run(data_set, layout={"workers": 4})
    ranks = workers_of(2, 4)
    faults = [
        Fault("kill", rank, after_messages=plain.posted * share // 10)
        for rank, share in ((ranks[1], 2), (ranks[3], 4), (ranks[0], 6))
    ]
    outcome = run(data_set, layout={"workers": 4}, faults=faults)
    is_optimal(outcome, data_set, best)
    assert [each["workers"] for each in outcome.of("workers")] == [3, 2, 1]


def test_two_at_once_and_the_spare_that_took_over(data_set: DataSet, best: float) -> None:
    plain = run(data_set, layout={"spares": 1})
    ranks, at = [*workers_of(2, 3), 6], plain.posted // 2
    faults = [Fault("kill", rank, after_messages=at) for rank in (ranks[0], ranks[2])]
    outcome = run(data_set, layout={"spares": 1}, faults=[*faults, Fault("kill", 6, after_messages=at + 250)])
    is_optimal(outcome, data_set, best)
    assert outcome.of("workers")[-1]["workers"] == 1


def test_without_any_worker_the_run_ends_with_a_clear_error(data_set: DataSet) -> None:
    faults = [Fault("kill", rank, after_messages=300) for rank in workers_of(2, 2)]
    with pytest.raises(NoWorkerLeft, match=r"no worker is left.*--resume latest"):
        run(data_set, layout={"workers": 2}, faults=faults)


# --- Reading lost parts ----------------------------------------------------------------------------------------


def test_survivors_read_what_was_lost_and_nothing_else(data_set: DataSet) -> None:
    at = run(data_set).posted // 2
    outcome = run(data_set, faults=[Fault("kill", 4, after_messages=at)])
    assert sorted(outcome.reads[:3]) == [(3, [0, 3, 6, 9]), (4, [1, 4, 7, 10]), (5, [2, 5, 8, 11])]
    assert sorted(outcome.reads[3:]) == [(3, [1, 7]), (5, [4, 10])]


def test_a_spare_reads_what_was_lost_at_once(data_set: DataSet) -> None:
    at = run(data_set).posted // 2
    outcome = run(data_set, layout={"spares": 1}, faults=[Fault("kill", 4, after_messages=at)])
    assert outcome.reads[3:] == [(6, [1, 4, 7, 10])]


def test_a_worker_joins_and_another_leaves(data_set: DataSet, best: float) -> None:
    def on_event(cluster: Cluster, name: str, facts: dict[str, Any]) -> None:
        if name == "pass" and facts["pass"] == 2:
            cluster.orders.joining += 1
        if name == "pass" and facts["pass"] == 4:
            cluster.orders.leaving.add(3)

    outcome = run(data_set, layout={"spares": 1}, on_event=on_event)
    is_optimal(outcome, data_set, best)
    assert [(each["gone"], each["come"]) for each in outcome.of("workers")] == [([], [6]), ([3], [])]
    newcomer = [parts for rank, parts in outcome.reads if rank == 6]
    assert len(newcomer[0]) == 3, "a newcomer has its share of twelve parts"
    passes = [each["pass"] for each in outcome.of("pass")]
    assert passes == list(range(1, outcome.metrics["passes"] + 1))


# --- Bits ----------------------------------------------------------------------------------------------------


@pytest.mark.drawn(2)
@pytest.mark.parametrize("algorithm", ["darlin", "ftrl"])
@pytest.mark.parametrize("victim", ["server", "scheduler"])
def test_the_loss_of_a_server_or_scheduler_does_not_show_in_the_bits(
    data_set: DataSet, algorithm: str, victim: str
) -> None:
    how: dict[str, Any] = {
        "settings": {"algorithm": algorithm, "batch": 10}, "consistency": SEQUENTIAL,
        "layout": {"servers": 3, "workers": 2, "schedulers": 2}, "replicas": 1,
    }  # fmt: skip
    plain = run(data_set, **how)
    rank = {"server": 3, "scheduler": 0}[victim]
    for share in (3, 7):
        fault = Fault("kill", rank, after_messages=plain.posted * share // 10)
        outcome = run(data_set, **how, faults=[fault])
        assert outcome.sha == plain.sha
        assert [each.get("objective") for each in outcome.of("pass")] == [
            each.get("objective") for each in plain.of("pass")
        ]


def test_a_checkpoint_after_a_loss_is_resumed_to_the_same_bits(data_set: DataSet, tmp_path: Path) -> None:
    """The survivors' parts are not those that as many workers would begin with; resumed, they are the same again."""
    at = run(data_set).posted // 3
    how: dict[str, Any] = {
        "checkpoint": {"every": 1, "keep": 99},
        "faults": [Fault("kill", 4, after_messages=at)],
    }
    whole = run(data_set, checkpoints=tmp_path, **how)
    step = next(number for number, each in enumerate(whole.log) if each["event"] == "workers")
    after = sum(each["event"] == "pass" for each in whole.log[:step]) + 2
    path = next(each for each in complete(tmp_path) if each.name.startswith(f"step-{after:06d}"))
    again = run(data_set, layout={"servers": 1, "workers": 2}, resume=path)
    reads = [[parts for who, parts in again.reads if who == rank] for rank in workers_of(1, 2)]
    assert reads == [[[0, 3, 6, 9], [1, 7]], [[2, 5, 8, 11], [4, 10]]]
    assert again.sha == whole.sha


# --- The matrix ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("values", [(True, True), (True, False), (False, False)])
def test_joined_columns_are_those_of_all_rows(values: tuple[bool, bool]) -> None:
    rng = np.random.default_rng(1)

    def some(n: int, ones: bool) -> Examples:
        rows = [np.sort(rng.choice(30, rng.integers(0, 8), replace=False)) for _ in range(n)]
        keys = np.concatenate(rows).astype(np.uint64)
        labels = np.where(rng.random(n) < 0.5, 1.0, -1.0).astype(np.float32)
        own = None if ones else rng.normal(size=len(keys)).astype(np.float32)
        return Examples(labels, np.cumsum([0, *map(len, rows)]), keys, own)

    first, second = some(20, values[0]), some(15, values[1])
    got, want = joined(load_columns([first]), load_columns([second])), load_columns([first, second])
    for name in ("keys", "colptr", "rows", "values", "labels"):
        mine, theirs = getattr(got, name), getattr(want, name)
        assert (mine is None) == (theirs is None)
        assert mine is None or (np.array_equal(mine, theirs) and mine.dtype == theirs.dtype)
    nothing: Columns = load_columns(())
    assert np.array_equal(joined(nothing, want).rows, want.rows)


# --- Online ----------------------------------------------------------------------------------------------------


@pytest.mark.drawn(2)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("algorithm", ["ftrl", "sgd"])
def test_online_every_example_is_learnt_once_whichever_rank_is_lost(
    data_set: DataSet, algorithm: str, seed: int
) -> None:
    rng = random.Random(seed)
    workers, spares = rng.randint(2, 4), rng.randint(0, 1)
    how: dict[str, Any] = {
        "layout": {"workers": workers, "spares": spares, "hand_over": rng.random() < 0.5},
        "consistency": rng.choice([SEQUENTIAL, BOUNDED, {"model": "eventual"}]),
        "settings": {"algorithm": algorithm, "batch": 3, "passes": 3, "alpha": 0.3, "l1": 0.1},
        "checkpoint": {"every": 1},
    }  # fmt: skip
    plain = run(data_set, **how)
    fault = Fault("kill", rng.choice(workers_of(2, workers)), after_messages=rng.randrange(plain.posted))
    outcome = run(data_set, **how, faults=[fault], delays=random_delays(seed, delay=0.002), seed=seed)
    assert [each["examples"] for each in outcome.of("pass")] == [len(data_set.y)] * 3
    losses = [each["mean loss"] for each in outcome.of("pass")]
    assert losses[-1] < losses[0]
    assert outcome.metrics["objective"] < 1.1 * plain.metrics["objective"]


def test_online_a_lost_part_continues_where_it_was(data_set: DataSet) -> None:
    """A step is a mini-batch of every worker; what the lost one had learnt in earlier calls is not learnt again."""
    asked: list[tuple[int, int, int]] = []
    settings = {"algorithm": "ftrl", "batch": 1}
    with pytest.MonkeyPatch.context() as patch:
        learn = Learner.learn

        def watched(self: Any, parts: list[list[int]], **how: Any) -> Any:
            asked.extend((self.context.rank, part, done) for part, _, done in parts)
            return learn(self, parts, **how)

        patch.setattr(Learner, "learn", watched)
        at = run(data_set, settings=settings).posted // 2
        asked.clear()
        outcome = run(data_set, settings=settings, faults=[Fault("kill", 4, after_messages=at)])
    assert outcome.metrics["examples"] == len(data_set.y)
    lost = max(done for rank, part, done in asked if (rank, part) == (4, 1))
    taken = [done for rank, part, done in asked if part == 1 and rank != 4]
    assert lost > 0 and min(taken) == lost


def test_online_parts_are_handed_over_to_idle_workers(
    data_set: DataSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One worker's files are long, the other's short: with `hand_over` the second helps the first."""
    # As after the start, where two workers learn less at once than one alone.
    monkeypatch.setattr(online, "MOST_BEHIND", 0)
    files = []
    for name, rows in (("a", 60), ("b", 4), ("c", 60), ("d", 4), ("e", 60), ("f", 4)):
        files.append(tmp_path / f"{name}.svm")
        files[-1].write_text(svmlight(data_set.x[:rows], data_set.y[:rows], data_set.keys))
    how: dict[str, Any] = {
        "settings": {"algorithm": "ftrl", "batch": 2}, "data": {"parts": 6}, "consistency": {"model": "eventual"},
    }  # fmt: skip
    plain, handed = (
        run(files, layout={"servers": 1, "workers": 2, "hand_over": hand_over}, **how)
        for hand_over in (False, True)
    )
    assert plain.metrics["examples"] == handed.metrics["examples"] == 192
    assert handed.posted < plain.posted, "fewer calls, since both work"


def test_online_a_newcomer_takes_its_share(data_set: DataSet) -> None:
    joined_at: list[int] = []

    def on_event(cluster: Cluster, name: str, facts: dict[str, Any]) -> None:
        if name == "pass" and facts["pass"] == 1:
            cluster.orders.joining += 1
        if name == "workers":
            joined_at.append(facts["workers"])

    settings = {"algorithm": "adagrad", "batch": 4, "passes": 3}
    outcome = run(data_set, layout={"workers": 2, "spares": 1}, settings=settings, on_event=on_event)
    assert joined_at == [3]
    assert [each["examples"] for each in outcome.of("pass")] == [len(data_set.y)] * 3


@pytest.mark.parametrize("workers", [2, 3])
def test_online_a_pass_that_was_stopped_continues_with_other_workers(
    data_set: DataSet, tmp_path: Path, workers: int
) -> None:
    calls = 0

    def on_start(cluster: Cluster, name: str, facts: dict[str, Any]) -> None:
        nonlocal calls
        calls += 1
        cluster.orders.stop = "SIGUSR1"

    settings = {"algorithm": "ftrl", "batch": 2, "passes": 2}
    stopped = run(data_set, layout={"workers": 2}, settings=settings, checkpoints=tmp_path, on_event=on_start)
    assert stopped.stopped and stopped.metrics["passes"] == 1
    (path,) = complete(tmp_path)
    again = run(data_set, layout={"workers": workers}, settings=settings, resume=path)
    assert [each["examples"] for each in again.of("pass")] == [len(data_set.y)]


@pytest.mark.drawn(1)
@pytest.mark.parametrize("seen", [True, False])
def test_data_that_has_changed_is_refused(
    data_set: DataSet, tmp_path: Path, seen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A survivor that reads a lost part finds other examples than there were, also if the file looks the same."""
    if not seen:
        monkeypatch.setattr(SameFiles, "check", lambda *_: None)
    file = tmp_path / "train.svm"
    file.write_text(data_set.train.read_text())
    at = run([file]).posted // 2

    def on_event(cluster: Cluster, name: str, facts: dict[str, Any]) -> None:
        if name == "workers":
            file.write_text("".join(data_set.train.read_text().splitlines(keepends=True)[:100]))

    said = "was replaced or changed since this run began" if seen else "training data must stay as it is"
    with pytest.raises(MpipsError, match=said):
        run([file], on_event=on_event, faults=[Fault("kill", 4, after_messages=at)])

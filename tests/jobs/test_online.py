"""The online learners, compared with plain NumPy on the same mini-batches; hashed, skipped and uneven data."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import F8, DataSet, Hooks, Outcome, make, objective, run_twin, svmlight

from mpips.checkpoint.manifest import complete, read_manifest
from mpips.data import DataSpec, read, text
from mpips.data.convert import convert
from mpips.errors import CheckpointError, MpipsError
from mpips.jobs.sparse_lr.online import Learner
from mpips.scheduler.scheduler import Cluster
from mpips.transport.network_faults import random_delays
from mpips.worker.vector import Vector

ALGORITHMS = ["ftrl", "adagrad", "sgd"]
SETTINGS: dict[str, Any] = {"batch": 13, "passes": 2, "alpha": 0.3, "beta": 0.7, "l1": 0.4, "l2": 0.05}


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return make(tmp_path_factory.mktemp("made"), "real")


def batches(data: DataSet, workers: int) -> Iterator[list[np.ndarray]]:
    """The examples of each step: a mini-batch of every worker, whose part is every `workers`th example."""
    parts = [np.arange(len(data.y))[worker::workers] for worker in range(workers)]
    size = SETTINGS["batch"]
    for begin in range(0, len(parts[0]), size):
        yield [part[begin : begin + size] for part in parts]


def soft(z: F8, by: float) -> F8:
    return np.sign(z) * np.maximum(np.abs(z) - by, 0.0)


def learnt(data: DataSet, algorithm: str, workers: int = 1) -> F8:
    """Learn the plain way. Only keys that a mini-batch names are updated."""
    rate, beta, l1, l2 = (SETTINGS[name] for name in ("alpha", "beta", "l1", "l2"))
    w, n, z = (np.zeros(len(data.keys)) for _ in range(3))
    for _ in range(SETTINGS["passes"]):
        for step in batches(data, workers):
            g = np.zeros(len(w))
            for rows in step:
                x, y = data.x[rows], data.y[rows]
                part = x.T @ (-y / (1.0 + np.exp(y * (x @ w))))
                g += part / max(len(rows), 1) if algorithm == "sgd" else part
            named = (data.x[np.concatenate(step)] != 0).any(0)
            if algorithm == "sgd":
                per = len(data.y)
                new = soft(w - rate * g, rate * l1 / per) / (1.0 + rate * l2 / per)
            else:
                before, n = n, np.sqrt(n**2 + g**2)
                e = (beta + n) / rate
                z += g - (n - before) / rate * w
                new = soft(-z, l1) / (e + l2) if algorithm == "ftrl" else soft(e * w - g, l1) / (e + l2)
            w = np.where(named, new, w)
    return w


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_as_plain_numpy(data_set: DataSet, algorithm: str, workers: int) -> None:
    outcome = run_twin(data_set, 2, workers, settings={"algorithm": algorithm, **SETTINGS})
    expected = learnt(data_set, algorithm, workers)
    weights = outcome.weights(data_set.keys)
    assert np.abs(weights - expected).max() < 1e-9
    assert np.abs(expected).max() > 0.1
    metrics = outcome.metrics
    assert metrics["objective"] == pytest.approx(objective(weights, data_set.x, data_set.y, 0.4), rel=1e-9)
    assert metrics["nonzeros"] == np.count_nonzero(weights) and metrics["passes"] == 2
    assert outcome.passes("examples") == [len(data_set.y)] * 2
    margins = data_set.test_y * (data_set.test_x @ weights)
    assert metrics["logloss"] == pytest.approx(np.logaddexp(0.0, -margins).mean(), rel=1e-9)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_the_same_bits_for_any_number_of_servers(data_set: DataSet, algorithm: str) -> None:
    shas = {
        run_twin(
            data_set, servers, 2, delays=random_delays(servers, delay=0.01, drop=0.05, duplicate=0.05), seed=servers,
            settings={"algorithm": algorithm, **SETTINGS},
        ).sha
        for servers in (1, 2, 3, 5)
    }  # fmt: skip
    assert len(shas) == 1


@pytest.mark.parametrize(
    "consistency",
    [
        {"model": "bounded", "tau": 3},
        {"model": "bounded", "tau": 3, "pull_tau": 0},
        {"model": "bounded", "tau": 0, "push_tau": 2},
        {"model": "eventual"},
    ],
)
@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_with_delay_the_objective_is_close_to_the_sequential_one(
    data_set: DataSet, algorithm: str, consistency: dict[str, Any]
) -> None:
    settings = {"algorithm": algorithm, "batch": 10, "passes": 10, "l1": 0.1, "alpha": 0.5}
    plain = run_twin(data_set, 1, 3, settings=settings)
    outcome = run_twin(
        data_set, 2, 3, consistency=consistency, delays=random_delays(1, delay=0.02, drop=0.05, duplicate=0.1),
        settings=settings,
    )  # fmt: skip
    losses = outcome.passes("mean loss")
    assert losses[-1] < losses[0] < 1.1 * np.log(2.0)
    assert outcome.metrics["objective"] < 1.1 * plain.metrics["objective"]
    assert outcome.metrics["logloss"] < plain.metrics["logloss"] + 0.05
    assert outcome.passes("examples") == [len(data_set.y)] * 10


@pytest.mark.parametrize("pull_tau,push_tau", [(0, 4), (1, 4), (4, 0)])
def test_pulls_and_pushes_wait_for_what_their_own_delay_says(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch, pull_tau: int, push_tau: int
) -> None:
    issued: dict[int, list[Any]] = {}
    most = {"pull": 0, "push": 0}
    push, pull = Vector.push, Vector.pull

    def watched_push(self: Any, keys: Any, rows: Any, **how: Any) -> Any:
        how["after"] = list(how.get("after", ()))
        mine = issued.setdefault(self.node.rank, [])
        free = [task for task in mine if not task.done and task not in how["after"]]
        most["push"] = max(most["push"], len(free))
        mine.append(push(self, keys, rows, **how))
        return mine[-1]

    def watched_pull(self: Any, keys: Any, **how: Any) -> Any:
        how["after"] = list(how.get("after", ()))
        mine = issued.setdefault(self.node.rank, [])
        free = [task for task in mine if not task.done and task not in how["after"]]
        most["pull"] = max(most["pull"], len(free))
        return pull(self, keys, **how)

    monkeypatch.setattr(Vector, "push", watched_push)
    monkeypatch.setattr(Vector, "pull", watched_pull)
    consistency = {"model": "bounded", "tau": 2, "pull_tau": pull_tau, "push_tau": push_tau}
    run_twin(
        data_set, 2, 2, consistency=consistency, delays=random_delays(2, delay=0.05),
        settings={"algorithm": "sgd", "batch": 5},
    )  # fmt: skip
    assert most["pull"] <= pull_tau and most["push"] <= push_tau
    assert most["pull"] + most["push"] > 0, "nothing was ever under way"


def test_a_pull_of_no_delay_sees_the_push_before_it(data_set: DataSet) -> None:
    """One worker whose pulls wait for all pushes: the sequential result, however late pushes may be."""
    plain, other = (
        run_twin(
            data_set, 2, 1, consistency=consistency, delays=random_delays(5, delay=0.02),
            settings={"algorithm": "ftrl", **SETTINGS},
        )
        for consistency in ({}, {"model": "bounded", "tau": 5, "pull_tau": 0})
    )  # fmt: skip
    assert plain.sha == other.sha


@pytest.mark.parametrize("consistency", [{}, {"model": "bounded", "tau": 2}])
def test_workers_with_unequal_numbers_of_batches(
    data_set: DataSet, tmp_path: Path, consistency: dict[str, Any]
) -> None:
    """Three files for two workers, of 150, 10 and 40 examples: 190 against 10 examples."""
    files = []
    for name, rows in (("a", slice(0, 150)), ("b", slice(150, 160)), ("c", slice(160, 200))):
        files.append(tmp_path / f"{name}.svm")
        files[-1].write_text(svmlight(data_set.x[rows], data_set.y[rows], data_set.keys))
    settings = {"algorithm": "ftrl", "batch": 4, "passes": 2}
    outcome = run_twin(files, 2, 2, consistency=consistency, settings=settings)
    assert outcome.passes("examples") == [200, 200]
    assert outcome.passes("mean loss")[1] < outcome.passes("mean loss")[0] < np.log(2.0)


@pytest.mark.parametrize("consistency", [{}, {"model": "bounded", "tau": 2}, {"model": "eventual"}])
def test_a_gradient_lacks_few_of_the_steps_at_the_start(
    data_set: DataSet, monkeypatch: pytest.MonkeyPatch, consistency: dict[str, Any]
) -> None:
    """At most a twentieth, as long as eight of each worker are more; a sequential step is one of every worker."""
    calls: dict[int, list[int]] = {}
    learn = Learner.learn

    def watched(self: Any, parts: Any, count: int, first_round: int, number: int) -> Any:
        found = learn(self, parts, count, first_round, number)
        calls.setdefault(first_round, []).append(found["examples"])
        return found

    monkeypatch.setattr(Learner, "learn", watched)
    settings = {"algorithm": "ftrl", "batch": 1, "passes": 3}
    outcome = run_twin(data_set, 1, 3, consistency=consistency, settings=settings)
    assert outcome.passes("examples") == [len(data_set.y)] * 3
    learned, most = 0, []
    for call in calls.values():
        most.append(sum(call))
        alone = max(call) == sum(call)
        assert not consistency or learned >= 480 or alone or sum(call) <= learned // 20
        learned += sum(call)
    assert learned == 3 * len(data_set.y) >= 600
    assert most[:20] == [1] * 20 if consistency else most[0] == 48
    assert max(most) == 48, "all of a call of three workers, in the end"


# --- Data --------------------------------------------------------------------------------------------------


def tsv(folder: Path, name: str, n: int, seed: int, alien: bool = False) -> Path:
    """Labels that depend on the pair of two columns, and on neither of them alone."""
    rng = np.random.default_rng(seed)
    a, b, noise = rng.integers(0, 4, n), rng.integers(0, 4, n), rng.integers(0, 50, n)
    labels = (a + b) % 2 ^ (rng.random(n) < 0.05)
    lines = ["label\ta\tb\tnoise"]
    new = "new" if alien else ""
    lines += [f"{y}\ta{i}\tb{j}\t{new}{k}" for y, i, j, k in zip(labels, a, b, noise, strict=True)]
    path = folder / name
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_hashed_columns_with_crosses(tmp_path: Path, algorithm: str) -> None:
    train, test = tsv(tmp_path, "train.tsv", 1000, 1), tsv(tmp_path, "test.tsv", 300, 2)
    settings = {"algorithm": algorithm, "batch": 20, "passes": 5, "alpha": 0.5}
    crossed = {"crosses": [["a", "b"]]}
    with_crosses = [
        run_twin(train, servers, 2, test=test, data=crossed, settings=settings) for servers in (1, 3)
    ]
    without = run_twin(train, 1, 2, test=test, settings=settings)
    assert with_crosses[0].sha == with_crosses[1].sha
    assert with_crosses[0].metrics["auc"] > 0.9 and with_crosses[0].metrics["accuracy"] > 0.9
    assert without.metrics["auc"] < 0.65
    spec = DataSpec(train=str(train), **crossed)
    known = np.unique(np.concatenate([batch.keys for batch in read([str(train)], spec)]))
    assert np.isin(with_crosses[0].keys, known).all() and known.max() > 2**60


@pytest.mark.parametrize(
    ("algorithm", "exact"), [("ftrl", False), ("sgd", False), ("darlin", False), ("darlin", True)]
)
def test_keys_of_128_bits_give_the_same_bits(tmp_path: Path, algorithm: str, exact: bool) -> None:
    """Their upper halves are the keys of 64 bits, which do not collide here."""
    train, test = tsv(tmp_path, "train.tsv", 600, 1), tsv(tmp_path, "test.tsv", 300, 2)
    settings = {"algorithm": algorithm, "passes": 3} | (
        {} if algorithm == "darlin" else {"batch": 20, "alpha": 0.5}
    )
    narrow, wide = (
        run_twin(
            train, 2, 2, test=test, settings=settings, layout={"exact_sums": exact},
            data={"crosses": [["a", "b"]], "key_bits": bits},
        )
        for bits in (64, 128)
    )  # fmt: skip
    assert narrow.keys.tolist() == wide.keys[:, 0].tolist() and len(np.unique(wide.keys[:, 1])) > 10
    assert narrow.values.tobytes() == wide.values.tobytes()
    assert narrow.metrics["auc"] == wide.metrics["auc"] and wide.sha != narrow.sha


@pytest.mark.parametrize(
    ("algorithm", "changed", "said"),
    [
        ("darlin", {"key_bits": 128}, "[data] key_bits = 128, was 64: set it as it was, or start a new run"),
        ("ftrl", {"key_bits": 128}, "[data] key_bits = 128, was 64: set it as it was, or start a new run"),
        ("darlin", {"crosses": []}, '[data] crosses = [], was [["a", "b"]]: set it as it was, or start a new run'),
        ("ftrl", {"crosses": []}, 'changed since then: [data] crosses = [], was [["a", "b"]]'),
    ],
)  # fmt: skip
def test_other_keys_of_the_data_are_refused_on_resume_or_told(
    tmp_path: Path, algorithm: str, changed: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train, data = tsv(tmp_path, "train.tsv", 100, 1), {"crosses": [["a", "b"]]}
    settings = {"algorithm": algorithm, "passes": 2}
    run_twin(train, 1, 1, data=data, settings=settings, hooks=Hooks(checkpoints=tmp_path, stop_after=1))
    hooks = Hooks(checkpoints=tmp_path, resume=complete(tmp_path)[-1])
    if said.startswith("changed"):
        told: list[str] = []
        monkeypatch.setattr(Cluster, "say", lambda cluster, text: told.append(text))
        run_twin(train, 1, 1, data=data | changed, settings=settings, hooks=hooks)
        assert said in told
    else:
        with pytest.raises(MpipsError, match=re.escape(said)):
            run_twin(train, 1, 1, data=data | changed, settings=settings, hooks=hooks)


@pytest.mark.parametrize("program", ["sparse_lr", "fm"])
def test_other_data_with_larger_keys_are_refused_on_resume(tmp_path: Path, program: str) -> None:
    for name, key in (("one", 5), ("other", 9)):
        (tmp_path / f"{name}.svm").write_text(f"+1 1:1 {key}:1\n-1 2:1\n" * 9)
    settings: dict[str, Any] = {"passes": 2, "batch": 4} | (
        {"algorithm": "ftrl"} if program == "sparse_lr" else {}
    )
    how: dict[str, Any] = {"program": program, "settings": settings}
    run_twin(tmp_path / "one.svm", 1, 1, **how, hooks=Hooks(checkpoints=tmp_path, stop_after=1))
    hooks = Hooks(resume=complete(tmp_path)[-1])
    with pytest.raises(
        CheckpointError, match=r"^\[data\] train has keys up to 9, and .* had none above 5: resume"
    ):
        run_twin(tmp_path / "other.svm", 1, 1, **how, hooks=hooks)
    assert run_twin(tmp_path / "one.svm", 1, 2, **how, hooks=hooks).metrics["passes"] == 2


def test_a_model_is_compared_with_no_weights_on_all_examples(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hashed columns, workers read one batch before training: it is small here."""
    monkeypatch.setattr(text, "BATCH_NONZEROS", 40)
    train = tsv(tmp_path, "train.tsv", 1000, 1)
    metrics = run_twin(train, 1, 2, settings={"algorithm": "ftrl", "batch": 20, "alpha": 0.5}).metrics
    assert 40 * math.log(2.0) < metrics["objective"] < 1000 * math.log(2.0)
    assert metrics["examples"] == 1000


def test_test_keys_never_seen_in_training_weigh_nothing(tmp_path: Path) -> None:
    train = tsv(tmp_path, "train.tsv", 500, 1)
    seen, alien = tsv(tmp_path, "seen.tsv", 200, 2), tsv(tmp_path, "alien.tsv", 200, 2, alien=True)
    settings = {"algorithm": "ftrl", "l1": 8.0, "batch": 20, "alpha": 0.5}  # no noise column survives this
    data = {"crosses": [["a", "b"]]}
    outcomes = [run_twin(train, 2, 2, test=test, data=data, settings=settings) for test in (seen, alien)]
    assert outcomes[0].metrics["logloss"] == outcomes[1].metrics["logloss"] < np.log(2.0)


@pytest.mark.parametrize("algorithm", ["ftrl", "darlin"])
def test_hdf5(data_set: DataSet, tmp_path: Path, algorithm: str) -> None:
    packed = tmp_path / "train.h5"
    convert([str(data_set.train)], str(packed), DataSpec())
    settings = {"algorithm": algorithm}
    assert (
        run_twin(packed, 2, 2, settings=settings).sha == run_twin(data_set.train, 2, 2, settings=settings).sha
    )


@pytest.mark.parametrize("algorithm", ["ftrl", "sgd", "darlin"])
def test_bad_lines_are_skipped_and_counted(data_set: DataSet, tmp_path: Path, algorithm: str) -> None:
    lines = data_set.train.read_text().splitlines()
    good = tmp_path / "good.svm"
    good.write_text("\n".join(lines[:120]) + "\n")
    bad = tmp_path / "bad.svm"
    bad.write_text("\n".join([*lines[:120], "+1 7:nan", "maybe 3:1", "-1 5:1 4:1"]) + "\n")
    settings = {"algorithm": algorithm, "batch": 7}
    outcome = run_twin(bad, 2, 2, data={"on_error": "skip"}, settings=settings)
    assert outcome.sha == run_twin(good, 2, 2, settings=settings).sha
    (skipped,) = [event for event in outcome.log if event["event"] == "skipped"]
    assert skipped["lines"] == 3
    assert str(bad) in skipped["first"] and "121" in skipped["first"]
    with pytest.raises(Exception, match=r"bad\.svm.*12[123]") as caught:
        run_twin(bad, 2, 2, settings=settings)
    assert getattr(caught.value, "is_input", False)


@pytest.mark.parametrize("algorithm", ["ftrl", "sgd", "darlin"])
def test_unusual_contents_of_columns_are_reported_once(tmp_path: Path, algorithm: str) -> None:
    train, test = tsv(tmp_path, "train.tsv", 300, 1), tsv(tmp_path, "test.tsv", 100, 2)
    names, *rows = test.read_text().splitlines()
    order = [0, *reversed(range(1, len(names.split("\t"))))]
    turned = ["\t".join(line.split("\t")[at] for at in order) for line in (names, *rows)]
    other = tmp_path / "other.tsv"
    other.write_text("\n".join([*turned, "NA\tx\ty\tz"]) + "\n")
    with train.open("a") as file:
        file.write("?\tx\ty\tz\n1\tx\n")
    settings = {"algorithm": algorithm, "batch": 7, "passes": 2, "l1": 0.1}
    data = {"on_error": "skip", "crosses": [["a", "b"]]}
    plain, outcome = (
        run_twin(train, 2, 2, test=each, data=data, settings=settings) for each in (test, other)
    )
    said = [
        (event["event"], event["data"]) for event in outcome.log if event["event"] in ("header", "skipped")
    ]
    assert said == [("header", "train"), ("skipped", "train"), ("skipped", "test")]
    assert [event["lines"] for event in outcome.log if event["event"] == "skipped"] == [2, 1]
    assert outcome.metrics["auc"] == plain.metrics["auc"]  # names decide, not places


# --- Checkpoints -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_resume_gives_the_same_bits(data_set: DataSet, tmp_path: Path, algorithm: str) -> None:
    settings = {"algorithm": algorithm, **SETTINGS, "passes": 4}
    whole = run_twin(
        data_set,
        2,
        2,
        settings=settings,
        checkpoint={"every": 1, "keep": 9},
        hooks=Hooks(checkpoints=tmp_path),
    )
    steps = complete(tmp_path)
    assert len(steps) == 3
    for servers, path in ((1, steps[0]), (3, steps[1]), (2, steps[2])):
        again = run_twin(data_set, servers, 2, settings=settings, hooks=Hooks(resume=path))
        assert again.sha == whole.sha
        assert again.metrics == whole.metrics | {"model": again.metrics["model"]}
        assert again.passes("mean loss") == whole.passes("mean loss")[-len(again.passes()) :]


def test_a_run_that_is_stopped_within_a_pass_continues_to_the_same_bits(
    data_set: DataSet, tmp_path: Path
) -> None:
    settings = {"algorithm": "ftrl", "batch": 2}  # 50 mini-batches of each worker
    whole = run_twin(data_set, 1, 2, settings=settings)

    stopped = run_twin(data_set, 2, 2, settings=settings, hooks=Hooks(checkpoints=tmp_path, stop_within=2))
    assert stopped.stopped and stopped.metrics["examples"] == 2 * 2 * 2 * 16
    assert stopped.passes() == []
    (path,) = complete(tmp_path)
    again = run_twin(data_set, 3, 2, settings=settings, hooks=Hooks(resume=path))
    assert again.sha == whole.sha
    assert again.metrics["examples"] == len(data_set.y) and len(again.passes()) == 1
    other: Outcome = run_twin(data_set, 1, 3, settings=settings, hooks=Hooks(resume=path))
    assert other.metrics["examples"] == len(data_set.y)
    assert other.metrics["objective"] < 1.05 * whole.metrics["objective"]


@pytest.mark.parametrize(
    "change,text",
    [
        ({"algorithm": "darlin"}, "algorithm = ftrl, not darlin"),
        ({"alpha": 0.5}, "alpha = 0.1, not 0.5"),
        ({"batch": 4}, "batch = 2, not 4"),
    ],
)
def test_other_settings_are_refused(
    data_set: DataSet, tmp_path: Path, change: dict[str, Any], text: str
) -> None:
    settings = {"algorithm": "ftrl", "batch": 2}
    run_twin(data_set, 1, 1, settings=settings, hooks=Hooks(checkpoints=tmp_path, stop_within=1))
    (path,) = complete(tmp_path)
    with pytest.raises(Exception, match=text):
        run_twin(data_set, 1, 1, settings=settings | change, hooks=Hooks(resume=path))


@pytest.mark.parametrize("consistency", [{}, {"model": "bounded", "tau": 3}])
def test_small_gradients_that_are_held_back_are_pushed_in_the_end(
    data_set: DataSet, consistency: dict[str, Any]
) -> None:
    settings = {"algorithm": "sgd", "batch": 10, "passes": 2, "l1": 0.0, "alpha": 0.1}
    never = {"push": [{"name": "significant", "threshold": 1e6}]}
    outcome = run_twin(data_set, 2, 2, settings=settings, consistency=consistency, filters=never)
    assert outcome.metrics["nonzeros"] == len(data_set.keys), "by the flush alone"
    assert outcome.passes("mean loss")[0] == pytest.approx(np.log(2.0)), (
        "no step before the first pass was over"
    )
    assert outcome.passes("mean loss")[1] < 0.95 * np.log(2.0)


@pytest.mark.parametrize("algorithm", ["ftrl", "sgd"])
def test_deltas_are_written_within_a_pass_and_resumed_to_the_same_bits(
    data_set: DataSet, tmp_path: Path, algorithm: str
) -> None:
    settings = {"algorithm": algorithm, **SETTINGS, "batch": 3}
    plain = run_twin(data_set, 2, 2, settings=settings)
    how: dict[str, Any] = {
        "checkpoint": {"every_seconds": 0.01, "incremental": 3, "keep": 99},
        "settings": settings,
    }
    delays = random_delays(1, delay=0.004)
    deltas = run_twin(data_set, 2, 2, hooks=Hooks(checkpoints=tmp_path), delays=delays, **how)
    assert deltas.sha == plain.sha
    written = complete(tmp_path)
    assert len(written) > SETTINGS["passes"] + 1
    assert ["follows" in read_manifest(path) for path in written[:5]] == [False, True, True, True, False]
    for path in (written[1], written[3]):
        again = run_twin(data_set, 3, 2, hooks=Hooks(resume=path), **how)
        assert again.sha == plain.sha

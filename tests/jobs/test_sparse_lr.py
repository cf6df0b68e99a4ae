"""Complete runs of sparse logistic regression: LIBLINEAR's optimum, and the same bits on any layout."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from synthetic import DataSet, Hooks, Outcome, make, objective, optimum, run_twin, svmlight

from mpips.checkpoint.manifest import complete, read_manifest
from mpips.cluster.usage import Savings
from mpips.jobs.sparse_lr import control, proximal
from mpips.transport.network_faults import random_delays
from mpips.worker.key_list import KeyList
from mpips.worker.vector import Vector

SEQUENTIAL = {"model": "sequential"}
BOUNDED = {"model": "bounded", "tau": 4}
EVENTUAL = {"model": "eventual"}
LAYOUTS = [(1, 1, SEQUENTIAL), (2, 2, BOUNDED), (3, 4, EVENTUAL), (2, 4, SEQUENTIAL), (3, 1, BOUNDED)]
KINDS = ["binary", "real", "correlated", "unnormalised", "duplicates"]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DataSet]:
    folder = tmp_path_factory.mktemp("made")
    sets = {kind: make(folder / kind, kind, n=120, m=24) for kind in KINDS}
    return sets.__getitem__


@pytest.fixture(scope="module")
def undisturbed(data_set: Callable[[str], DataSet]) -> Outcome:
    return run_twin(data_set("duplicates"), 1, 2)


def check(outcome: Outcome, data: DataSet, l1: float, best: float) -> None:
    """The promises of any run: the optimum, a falling objective, and metrics that the model bears out."""
    metrics, weights = outcome.metrics, outcome.weights(data.keys)
    assert metrics["objective"] <= 1.001 * best
    assert metrics["objective"] == pytest.approx(objective(weights, data.x, data.y, l1), rel=1e-9)
    fall = np.diff(outcome.passes())
    assert (fall <= 1e-8 * best).all(), "the objective rose by more than its rounding"
    assert outcome.passes()[-1] == metrics["objective"]
    assert outcome.passes("pass") == list(range(1, metrics["passes"] + 1))
    assert metrics["nonzeros"] == len(outcome.keys) == outcome.passes("nonzeros")[-1] == np.sum(weights != 0)
    assert (np.diff(outcome.keys.astype(float)) > 0).all() and (outcome.values != 0).all()
    scores = data.test_x @ weights
    judges = judged(scores, data.test_y)
    assert {name: metrics[name] for name in judges} == pytest.approx(judges, rel=1e-9)


def judged(scores: Any, labels: Any) -> dict[str, float]:
    from sklearn import metrics

    return {
        "auc": metrics.roc_auc_score(labels, scores),
        "accuracy": metrics.accuracy_score(labels > 0, scores > 0),
        "logloss": metrics.log_loss(labels > 0, 1.0 / (1.0 + np.exp(-scores))),
    }


@pytest.mark.parametrize("l1", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("kind", KINDS)
def test_the_optimum_of_liblinear(data_set: Callable[[str], DataSet], kind: str, l1: float) -> None:
    data = data_set(kind)
    best = optimum(data.x, data.y, l1)
    at = KINDS.index(kind) + int(np.log10(l1))
    for servers, workers, consistency in (LAYOUTS[at % 5], LAYOUTS[(at + 2) % 5]):
        check(run_twin(data, servers, workers, consistency=consistency, settings={"l1": l1}), data, l1, best)


@pytest.mark.drawn(4)
@pytest.mark.parametrize("servers,workers,consistency", LAYOUTS)
def test_the_optimum_of_liblinear_in_every_layout(
    data_set: Callable[[str], DataSet], servers: int, workers: int, consistency: dict[str, Any]
) -> None:
    data = data_set("real")
    outcome = run_twin(
        data,
        servers,
        workers,
        consistency=consistency,
        delays=random_delays(1, delay=0.02, drop=0.05, duplicate=0.05),
    )
    check(outcome, data, 1.0, optimum(data.x, data.y, 1.0))


@pytest.mark.parametrize("blocks", [1, 7, 200])
def test_the_optimum_with_any_number_of_blocks(data_set: Callable[[str], DataSet], blocks: int) -> None:
    data = data_set("correlated")
    outcome = run_twin(data, 2, 2, consistency=BOUNDED, settings={"l1": 3.0, "blocks": blocks})
    check(outcome, data, 3.0, optimum(data.x, data.y, 3.0))


def test_a_large_penalty_leaves_all_weights_at_zero(data_set: Callable[[str], DataSet]) -> None:
    data = data_set("real")
    outcome = run_twin(data, 2, 2, settings={"l1": 1e6})
    assert outcome.metrics["objective"] == pytest.approx(len(data.y) * np.log(2.0), rel=1e-12)
    assert outcome.metrics["nonzeros"] == len(outcome.keys) == 0


def test_without_a_penalty(tmp_path: Path) -> None:
    from sklearn.linear_model import LogisticRegression

    data = make(tmp_path, n=300, m=6)
    outcome = run_twin(data, 2, 2, settings={"l1": 0.0, "epsilon": 1e-7})
    free = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-10).fit(data.x, data.y)
    assert outcome.metrics["objective"] <= 1.0001 * objective(free.coef_[0], data.x, data.y, 0.0)


def test_no_mixture_amplifies_rounding_errors(tmp_path: Path) -> None:
    """Here some passes move w by a few units in the last place, and a mixture of 1e12 times that looked like a gain."""
    data = make(tmp_path, "correlated", n=22, m=30, seed=655927)
    l1 = 7.7943824863083115
    delays = random_delays(655927, delay=0.002)
    check(run_twin(data, 1, 4, settings={"l1": l1}, delays=delays), data, l1, optimum(data.x, data.y, l1))
    model = np.array([[1e-26, 0.0], [0.0, 1e-26], [-1e-13, 1e-13], [9.0, 0.0]])
    sizes = np.array([0.0, 0.0, 1.0])
    quiet = control.propose(model, sizes, 1.0, before=10.0 + 1e-12)
    assert len(quiet.mixtures) == 0
    model[:2] *= 1e8
    assert len(control.propose(model, sizes, 1.0, before=10.0).mixtures) == 4
    assert len(control.propose(model, sizes, 1.0, before=10.0, noise=1e3).mixtures) == 2


def test_a_limit_of_passes(data_set: Callable[[str], DataSet]) -> None:
    outcome = run_twin(data_set("real"), 2, 2, settings={"passes": 3})
    assert outcome.metrics["passes"] == 3
    data = data_set("real")
    assert outcome.metrics["objective"] == pytest.approx(
        objective(outcome.weights(data.keys), data.x, data.y, 1.0), rel=1e-9
    )


def test_keys_of_all_64_bits_and_features_that_one_worker_alone_has(tmp_path: Path) -> None:
    data = make(tmp_path, m=40)
    data.x[1::2, :20] = 0.0  # worker 1 of 2 has none of the first half
    data.x[0::2, 20:] = 0.0
    keys = np.array([*range(1, 38), 2**63, 2**64 - 2, 2**64 - 1], np.uint64)
    data.train.write_text(svmlight(data.x, data.y, keys))
    best = optimum(data.x, data.y, 1.0)
    outcomes = [run_twin(data.train, servers, 2) for servers in (1, 3)]
    for outcome in outcomes:
        assert outcome.metrics["objective"] <= 1.001 * best
        weights = outcome.weights(keys)
        assert outcome.metrics["objective"] == pytest.approx(
            objective(weights, data.x, data.y, 1.0), rel=1e-9
        )
    assert outcomes[0].sha == outcomes[1].sha


def test_keys_of_the_test_data_that_training_never_saw_weigh_nothing(tmp_path: Path) -> None:
    data = make(tmp_path)
    alien = tmp_path / "alien.svm"
    rows = svmlight(data.test_x, data.test_y, data.keys).splitlines()
    last = int(data.keys[-1])
    alien.write_text("".join(f"{row} {last + 7}:3.5 {2**64 - 1}:1e3\n" for row in rows))
    plain, strange = (run_twin(data, 2, 2, test=test) for test in (data.test, alien))
    assert plain.metrics["auc"] == strange.metrics["auc"]
    assert plain.metrics["logloss"] == strange.metrics["logloss"]


# --- Without the KKT filter, and what it leaves out --------------------------------------------------------


@pytest.mark.parametrize("kind,workers", [("binary", 2), ("unnormalised", 1), ("correlated", 3)])
def test_without_the_filter_every_pass_visits_all_features(
    data_set: Callable[[str], DataSet], kind: str, workers: int
) -> None:
    data = data_set(kind)
    outcomes = [run_twin(data, servers, workers, settings={"kkt": False}) for servers in (1, 3)]
    for outcome in outcomes:
        check(outcome, data, 1.0, optimum(data.x, data.y, 1.0))
        assert set(outcome.passes("active")) == {len(data.keys)}
        assert set(outcome.passes("filtered")) == {0.0}
    assert len({outcome.sha for outcome in outcomes}) == 1


def spy_on_lists(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, list[int]]]:
    """Note the keys of every push of a block, with its round."""
    seen: list[tuple[int, list[int]]] = []
    push_pull = Vector.push_pull

    def spy(vector: Vector, keys: Any, rows: Any, **how: Any) -> Any:
        listed = keys.keys if isinstance(keys, KeyList) else keys
        if rows.ndim == 2 and rows.shape[1] == 2:
            seen.append((how["round"], listed.tolist()))
        return push_pull(vector, keys, rows, **how)

    monkeypatch.setattr(Vector, "push_pull", spy)
    return seen


def test_without_the_filter_the_lists_of_keys_are_the_same_in_every_pass(
    data_set: Callable[[str], DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spy_on_lists(monkeypatch)
    outcome = run_twin(data_set("binary"), 2, 1, settings={"kkt": False, "blocks": 4})
    assert set(outcome.passes("blocks")) == {4}
    lists = {tuple(keys) for _, keys in seen}
    assert len(lists) == 4
    assert len(seen) == 4 * (1 + outcome.metrics["passes"])  # with the start, whose rows are as wide


def test_the_share_that_is_filtered_is_of_what_a_pass_might_push(
    data_set: Callable[[str], DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    data, seen = data_set("unnormalised"), spy_on_lists(monkeypatch)
    reported: list[tuple[str, str, int, int]] = []
    monkeypatch.setattr(Savings, "add", lambda self, *facts: reported.append(facts))
    outcome = run_twin(data, 2, 1, settings={"l1": 10.0, "blocks": 3})
    blocks, m = outcome.passes("blocks"), len(data.keys)
    pushed = [len(keys) for _, keys in seen]
    per_pass = [sum(pushed[sum(blocks[:i]) : sum(blocks[: i + 1])]) for i in range(len(blocks))]
    assert outcome.passes("filtered") == pytest.approx([1.0 - n / m for n in per_pass])
    assert outcome.passes("filtered")[-1] > 0.3
    assert reported == [("kkt", role, 16 * m, 16 * n) for n in per_pass for role in ("worker", "server")]


ROUNDING = [{"name": "fixed_point", "bytes": 1, "least": 0}, {"name": "zstd", "least": 0}]
LOSSLESS = [{"name": "zeros", "least": 0}, {"name": "lz4", "least": 0}]


@pytest.mark.parametrize("kind,workers", [("binary", 2), ("real", 3), ("correlated", 1)])
def test_rounding_filters_find_the_optimum_and_report_its_objective(
    data_set: Callable[[str], DataSet], kind: str, workers: int
) -> None:
    data, filters = data_set(kind), {"push": ROUNDING, "pull": ROUNDING}
    outcome = run_twin(data, 2, workers, filters=filters)
    weights, best = outcome.weights(data.keys), optimum(data.x, data.y, 1.0)
    assert outcome.metrics["objective"] == pytest.approx(objective(weights, data.x, data.y, 1.0), rel=1e-9)
    assert outcome.metrics["objective"] <= 1.005 * best


def test_lossless_filters_change_no_bit(data_set: Callable[[str], DataSet]) -> None:
    filters = {"push": LOSSLESS, "pull": LOSSLESS}
    plain, filtered = (run_twin(data_set("real"), 2, 2, **more) for more in ({}, {"filters": filters}))
    assert plain.sha == filtered.sha
    assert plain.passes() == filtered.passes()


def test_a_run_ends_at_its_target(data_set: Callable[[str], DataSet]) -> None:
    data = data_set("real")
    best = optimum(data.x, data.y, 1.0)
    outcome = run_twin(data, 1, 2, settings={"target": 1.05 * best})
    *before, last = outcome.passes()
    assert last <= 1.05 * best < min(before)


def test_the_traffic_of_training_is_distinguished_from_that_of_the_evaluation(
    data_set: Callable[[str], DataSet],
) -> None:
    (trained,) = [event for event in run_twin(data_set("real"), 2, 2).log if event["event"] == "trained"]
    assert trained["traffic"]["worker_sent"] > 0 and trained["traffic"]["server_sent"] > 0


# --- The same bits for any layout --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["binary", "correlated"])
@pytest.mark.parametrize("workers", [1, 3])
def test_the_same_bits_for_any_number_of_servers(
    data_set: Callable[[str], DataSet], kind: str, workers: int
) -> None:
    fates = [
        {},
        {"delays": random_delays(4, delay=0.003)},
        {"delays": random_delays(5, delay=0.003, drop=0.02, duplicate=0.1)},
    ]
    outcomes = [
        run_twin(data_set(kind), servers, workers, seed=servers, consistency=SEQUENTIAL, **delays)
        for servers, delays in zip((1, 5, 2), fates, strict=True)
    ]
    assert len({outcome.sha for outcome in outcomes}) == 1
    assert len({json.dumps(outcome.passes()) for outcome in outcomes}) == 1
    assert len({outcome.metrics["objective"] for outcome in outcomes}) == 1
    assert len({outcome.metrics["gap"] for outcome in outcomes}) == 1


@settings(max_examples=5, deadline=None)
@given(
    servers=st.integers(1, 6), network=st.integers(0, 99), lossy=st.booleans(),
    spelling=st.sampled_from([SEQUENTIAL, {"model": "bounded", "tau": 0}, {}]),
    virtual=st.sampled_from([0, 1, 5]),
)  # fmt: skip
def test_the_same_bits_under_any_network(
    data_set: Callable[[str], DataSet], undisturbed: Outcome, servers: int, network: int, lossy: bool,
    spelling: Any, virtual: int,
) -> None:  # fmt: skip
    chance = 0.05 if lossy else 0.0
    delays = random_delays(network, delay=0.003, drop=chance, duplicate=chance)
    ring = {"virtual_servers": virtual}
    other = run_twin(
        data_set("duplicates"), servers, 2, delays=delays, seed=network, consistency=spelling, ring=ring
    )
    assert other.sha == undisturbed.sha
    assert other.passes() == undisturbed.passes()


def test_the_seed_and_the_number_of_workers_show(data_set: Callable[[str], DataSet]) -> None:
    shas = {
        run_twin(data_set("real"), 1, workers, job={"seed": s}).sha for workers, s in [(1, 0), (1, 1), (2, 0)]
    }
    assert len(shas) == 3


# --- Features dropped too early ----------------------------------------------------------------------------


def late_feature(folder: Path) -> tuple[Path, np.ndarray, np.ndarray]:
    """Make data of three features of which the last one's gradient is 0 until the first two have their weights.

    Feature 3 tells apart, with no error, the examples that features 1 and 2 get wrong; at w = 0 its gradient is
    nearly nothing, since it speaks as often for one label as for the other.
    """
    rng = np.random.default_rng(3)
    n = 400
    y = np.where(rng.random(n) < 0.5, 1.0, -1.0)
    x = np.zeros((n, 3))
    wrong = np.arange(n) % 5 == 0
    x[:, 0] = np.where(wrong, -y, y)
    x[:, 1] = np.where(rng.random(n) < 0.8, y, -y)
    right = np.flatnonzero(~wrong)[: wrong.sum()]
    x[wrong, 2] = y[wrong]
    x[right, 2] = -y[right]
    order = rng.permutation(n)
    x, y = x[order], y[order]
    path = folder / "late.svm"
    path.write_text(svmlight(x, y, np.arange(1, 4, dtype=np.uint64)))
    return path, x, y


def test_a_feature_that_was_dropped_too_early_is_reactivated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, x, y = late_feature(tmp_path)
    gradient = x.T @ (-y / 2.0)
    l1 = 2.0
    assert abs(gradient[2]) < l1 < abs(gradient[0]), "feature 3 starts inactive"
    returned = []
    reset_keys = proximal.kkt_filter.reset_keys

    def spy(*arguments: Any) -> Any:
        largest, count = reset_keys(*arguments)
        returned.append(count)
        return largest, count

    monkeypatch.setattr(proximal.kkt_filter, "reset_keys", spy)
    outcome = run_twin(path, 2, 2, settings={"l1": l1})
    best = optimum(x, y, l1)
    assert outcome.passes("active")[0] == 2 and outcome.passes("active")[-1] == 3
    assert sum(returned) == 1
    assert 3 in outcome.keys.tolist()
    assert outcome.metrics["objective"] <= 1.001 * best


def test_a_feature_dropped_during_the_passes_is_reactivated(
    data_set: Callable[[str], DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every feature but the first five is thrown out by force in the first pass; the reset finds them again."""
    data = data_set("real")
    prox_step = proximal.kkt_filter.prox_step
    victims: set[int] = set()

    def harsh(slots: Any, rows: Any, l1: float, threshold: float, w: Any, *rest: Any) -> Any:
        _, _, active, reply, *_ = rest
        worst = prox_step(slots, rows, l1, threshold, w, *rest)
        if threshold == 0.0:  # the first pass
            gone = slots[slots >= 5]
            victims.update(gone.tolist())
            at = np.isin(slots, gone)
            w[gone], active[gone] = 0.0, False
            reply[at] = 0.0
        return worst

    monkeypatch.setattr(proximal.kkt_filter, "prox_step", harsh)
    outcome = run_twin(data, 1, 2)
    assert len(victims) > 10 and outcome.passes("active")[0] <= 5
    assert outcome.metrics["objective"] <= 1.001 * optimum(data.x, data.y, 1.0)
    assert outcome.metrics["nonzeros"] > 10


# --- Whole runs --------------------------------------------------------------------------------------------


@pytest.mark.ranks
def test_whole_runs(
    data_set: Callable[[str], DataSet], tmp_path: Path, run_mpips: Callable[..., Any]
) -> None:
    """One server, and three without compiled requests, give the same bits, which are those of the twin."""
    data = data_set("binary")
    job = tmp_path / "job.toml"
    job.write_text(f'[job]\nprogram = "sparse_lr"\n[data]\ntrain = "{data.train}"\ntest = "{data.test}"\n')
    shas = set()
    without: dict[str, Any] = {"environ": {"NUMBA_DISABLE_JIT": "1"}}
    for servers, how in ((1, {}), (3, without)):
        run = tmp_path / f"run-{servers}"
        switches = ("--servers", str(servers), "--workers", "2", "--run-dir", run)
        done = run_mpips("run", job, *switches, cwd=tmp_path, **how)
        assert done.code == 0, done.stderr
        result = json.loads((run / "result.json").read_text())
        assert result["status"] == "completed"
        shas.add(result["parameters_sha256"])
        with np.load(run / "model.npz") as model:
            log = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
            outcome = Outcome(result["metrics"], "", model["keys"], model["values"], log)
        check(outcome, data, 1.0, optimum(data.x, data.y, 1.0))
        text = (run / "model.txt").read_text().split()
        read = [(int(key), float(value)) for key, value in (line.split(":") for line in text)]
        assert read == list(zip(outcome.keys.tolist(), outcome.values.tolist(), strict=True))
        seconds = [event["seconds"] for event in log if event["event"] == "pass"]
        assert seconds == sorted(seconds) and seconds[-1] <= result["seconds"]["train"]
    assert shas == {run_twin(data, 2, 2).sha}


@pytest.mark.drawn(1)
@pytest.mark.ranks
@pytest.mark.once
@pytest.mark.parametrize("consistency", ["consistency.tau=4", 'consistency.model="eventual"'])
def test_a_whole_run_with_delay(
    data_set: Callable[[str], DataSet], tmp_path: Path, run_mpips: Callable[..., Any], consistency: str
) -> None:
    data = data_set("real")
    job = tmp_path / "job.toml"
    job.write_text(f'[job]\nprogram = "sparse_lr"\n[data]\ntrain = "{data.train}"\n')
    done = run_mpips(
        "run", job, "--servers", "2", "--workers", "2", "--set", consistency, "--run-dir", "run", cwd=tmp_path
    )
    assert done.code == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["objective"] <= 1.001 * optimum(data.x, data.y, 1.0)
    assert result["metrics"]["auc"] is None


def test_a_run_resumes_from_deltas_to_the_same_bits(
    data_set: Callable[[str], DataSet], tmp_path: Path
) -> None:
    """Its notes, the histories of blocks, have other widths in each pass."""
    data = data_set("real")
    how: dict[str, Any] = {"settings": {"l1": 0.5, "passes": 5, "epsilon": 1e-12, "newton": False}}
    plain = run_twin(data, 2, 2, **how)
    how["checkpoint"] = {"every": 1, "incremental": 3, "keep": 99}
    assert run_twin(data, 2, 2, hooks=Hooks(checkpoints=tmp_path), **how).sha == plain.sha
    deltas = [path for path in complete(tmp_path) if "follows" in read_manifest(path)]
    assert len(deltas) == 3
    assert run_twin(data, 3, 2, hooks=Hooks(resume=deltas[-1]), **how).sha == plain.sha

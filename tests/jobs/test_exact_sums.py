"""[layout] exact_sums: the same bits for any number of workers and servers, also if ranks die; else an error."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import patience
from synthetic import DataSet, Hooks, Outcome, job_of, make, objective, optimum, run_twin, svmlight

from mpips.checkpoint import loading
from mpips.checkpoint.manifest import complete
from mpips.data import Examples, load_columns
from mpips.errors import CheckpointError, InputError, JobError
from mpips.jobs.sparse_lr import exact_darlin, exact_kernels, kernels
from mpips.jobs.sparse_lr.exact_blocks import ExactBlocks
from mpips.jobs.sparse_lr.job import Worker
from mpips.scheduler.scheduler import Cluster
from mpips.transport.network_faults import Fault, random_delays

EXACT = {"exact_sums": True}
LAYOUTS = [(1, 1), (2, 1), (3, 2), (1, 3), (3, 3), (2, 5)]


@pytest.fixture(scope="module")
def data_set(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], DataSet]:
    """Data by kind; "mixed": every other example, so all that one of two workers has, is of ones only."""
    folder = tmp_path_factory.mktemp("made")

    def mixed() -> DataSet:
        data = make(folder / "mixed", "real", n=121, m=24)
        data.x[::2] = data.x[::2] != 0.0
        data.train.write_text(svmlight(data.x, data.y, data.keys))
        return data

    sets = {kind: make(folder / kind, kind, n=120, m=24) for kind in ("binary", "correlated")}
    sets["unnormalised"] = make(folder / "unnormalised", "unnormalised", n=90, m=16)
    return (sets | {"mixed": mixed()}).__getitem__


def facts(outcome: Any) -> tuple[Any, ...]:
    """What may not differ between two runs: parameters, every pass, the metrics."""
    passes = [event for event in outcome.log if event["event"] == "pass"]
    observed = [
        {name: each[name] for name in ("objective", "theta", "nonzeros", "active", "blocks")}
        for each in passes
    ]
    return outcome.sha, json.dumps(observed), *({**outcome.metrics, "model": ""}.items())


@pytest.fixture(scope="module")
def plain(data_set: Callable[[str], DataSet]) -> Callable[[str], Outcome]:
    """Return an undisturbed run on data of a kind."""
    return cache(lambda kind: run_twin(data_set(kind), layout=EXACT))


# --- The same bits ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [pytest.param("binary", marks=pytest.mark.long), "mixed"])
def test_the_same_bits_for_any_number_of_workers_and_servers(
    data_set: Callable[[str], DataSet], kind: str
) -> None:
    data = data_set(kind)
    outcomes = [
        run_twin(data, servers, workers, layout=EXACT, delays=random_delays(at, delay=0.002), seed=at)
        for at, (servers, workers) in enumerate(LAYOUTS)
    ]
    first = outcomes[0]
    for outcome in outcomes:
        assert facts(outcome) == facts(first)
    assert first.metrics["objective"] <= 1.001 * optimum(data.x, data.y, 1.0)
    assert first.metrics["objective"] == pytest.approx(
        objective(first.weights(data.keys), data.x, data.y, 1.0), rel=1e-12
    )


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    "kind,more",
    [
        ("unnormalised", {}),
        ("correlated", {"settings": {"kkt": False}}),
        ("correlated", {"settings": {"l1": 5.0, "blocks": 1}}),
        ("binary", {"filters": {"push": [{"name": "zeros", "least": 0}, {"name": "lz4", "least": 0}]}}),
        ("binary", {"data": {"parts": 7}}),
    ],
)  # fmt: skip
def test_the_same_bits_with_other_settings(
    data_set: Callable[[str], DataSet], kind: str, more: dict[str, Any]
) -> None:
    data = data_set(kind)
    one, four = (run_twin(data, workers % 3, workers, layout=EXACT, **more) for workers in (1, 5))
    assert facts(one) == facts(four)
    l1 = more.get("settings", {}).get("l1", 1.0)
    assert one.metrics["objective"] <= 1.001 * optimum(data.x, data.y, l1)


def test_without_exact_sums_the_bits_depend_on_the_number_of_workers(
    data_set: Callable[[str], DataSet],
) -> None:
    """So that the tests above mean something."""
    assert len({run_twin(data_set("mixed"), 1, workers).sha for workers in (1, 2, 3)}) == 3


def test_blocks_are_cut_alike_where_there_are_too_many_features_to_name_all(
    data_set: Callable[[str], DataSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact_darlin, "SAMPLE", 8)
    one, three = (
        run_twin(data_set("binary"), 1, workers, layout=EXACT, settings={"blocks": 3}) for workers in (1, 3)
    )
    assert facts(one) == facts(three)
    assert set(one.passes("blocks")) & {2, 3}


# --- Workers that are lost, join, leave ------------------------------------------------------------------------------


def posted(data: DataSet, servers: int, workers: int, **network: Any) -> int:
    """Count the messages of a run."""
    observed: dict[str, Any] = {}
    run_twin(data, servers, workers, layout=EXACT, network={**network, "observed": observed})
    return int(observed["network"].posted)


def changes(outcome: Outcome) -> int:
    """Count how often the workers have changed."""
    return sum(event["event"] == "workers" for event in outcome.log)


@pytest.mark.drawn(2)
@pytest.mark.parametrize("seed", range(4))
def test_a_worker_is_lost_at_any_instant_to_the_same_bits(
    data_set: Callable[[str], DataSet], plain: Callable[[str], Outcome], seed: int
) -> None:
    kind, rng = ["binary", "mixed", "correlated"][seed % 3], random.Random(seed)
    data = data_set(kind)
    servers, workers, spares = rng.randint(1, 3), rng.randint(2, 4), rng.randint(0, 1)
    instant = rng.randrange(posted(data, servers, workers, spares=spares))
    fault = Fault("kill", 1 + servers + rng.randrange(workers), after_messages=instant)
    outcome = run_twin(
        data, servers, workers, layout=EXACT, checkpoint={"every": 3}, delays=random_delays(seed, delay=0.002),
        seed=seed, network={"faults": [fault], "spares": spares},
    )  # fmt: skip
    assert facts(outcome) == facts(plain(kind))


LONG = ("start", "model", "losses")
PHASES = ("start", "reset", "dual", "mix", "model", "losses", "weigh")


def watch_calls(data: DataSet, servers: int, workers: int, **network: Any) -> dict[str, list[int]]:
    """Give, for each function of a worker, how many messages had been sent when it was called."""
    found: dict[str, list[int]] = {name: [] for name in PHASES}

    def watched(name: str) -> Callable[..., Any]:
        called = getattr(Worker, name)

        def watch(self: Worker, *args: Any, **how: Any) -> Any:
            found[name].append(self.context.node.van._network.posted)
            return called(self, *args, **how)

        return watch

    with pytest.MonkeyPatch.context() as patch:
        for name in PHASES:
            patch.setattr(Worker, name, watched(name))
        run_twin(data, servers, workers, layout=EXACT, network=network)
    return found


@pytest.fixture(scope="module")
def instants(data_set: Callable[[str], DataSet]) -> dict[str, list[int]]:
    return watch_calls(data_set("binary"), 2, 3)


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    "function", [pytest.param(each, marks=pytest.mark.long) if each in LONG else each for each in PHASES]
)
def test_one_is_lost_in_any_phase_to_the_same_bits(
    data_set: Callable[[str], DataSet],
    plain: Callable[[str], Outcome],
    instants: dict[str, list[int]],
    function: str,
) -> None:
    """The changes of a pass and its reset (weights, radii, active set) are undone."""
    instant = instants[function][len(instants[function]) // 2]
    for after in (instant + 1, instant + 3, instant + 6):
        network = {"faults": [Fault("kill", 4, after_messages=after)]}
        outcome = run_twin(data_set("binary"), 2, 3, layout=EXACT, network=network)
        assert facts(outcome) == facts(plain("binary"))
        assert changes(outcome) == 1


HOSTS: dict[str, Any] = {"replicas": 1, "hosts": [f"h{rank % 3}" for rank in range(7)]}


@pytest.fixture(scope="module")
def instants_on_hosts(data_set: Callable[[str], DataSet]) -> dict[str, list[int]]:
    return watch_calls(data_set("binary"), 3, 3, **HOSTS)


@pytest.mark.drawn(3)
@pytest.mark.parametrize("host", range(3))
@pytest.mark.parametrize("function", ["reset", "dual", "mix"])
def test_a_host_is_lost_in_a_reset_to_the_same_bits(
    data_set: Callable[[str], DataSet],
    plain: Callable[[str], Outcome],
    instants_on_hosts: dict[str, list[int]],
    host: int,
    function: str,
) -> None:
    """A server and a worker at once, and on the first host the scheduler."""
    after = random.choice(instants_on_hosts[function]) + random.randint(1, 20)
    faults = [Fault("kill", rank, after_messages=after) for rank in range(host, 7, 3)]
    outcome = run_twin(data_set("binary"), 3, 3, layout=EXACT, network={**HOSTS, "faults": faults})
    assert facts(outcome) == facts(plain("binary")), after
    assert changes(outcome) == 1


def test_all_but_one_are_lost_one_joins_one_leaves_and_a_server_dies(
    data_set: Callable[[str], DataSet], plain: Callable[[str], Outcome]
) -> None:
    data = data_set("mixed")
    network: dict[str, Any] = {"spares": 1, "replicas": 1}
    whole = posted(data, 3, 4, **network)
    network["faults"] = [
        Fault("kill", rank, after_messages=whole * share // 10)
        for rank, share in ((5, 2), (2, 3), (7, 5), (4, 7))
    ]

    def on_event(cluster: Cluster, name: str, observed: dict[str, Any]) -> None:
        if name == "pass" and observed["pass"] == 3:
            cluster.orders.leaving.add(6)

    outcome = run_twin(data, 3, 4, layout=EXACT, network=network, hooks=Hooks(on_event=on_event))
    assert changes(outcome) >= 3
    assert facts(outcome) == facts(plain("mixed"))


def test_the_scheduler_and_a_worker_die(
    data_set: Callable[[str], DataSet], plain: Callable[[str], Outcome]
) -> None:
    data = data_set("binary")
    network: dict[str, Any] = {"schedulers": 2, "replicas": 1}
    whole = posted(data, 2, 2, **network)
    network["faults"] = [
        Fault("kill", rank, after_messages=whole * at // 10) for rank, at in ((0, 4), (5, 6))
    ]
    outcome = run_twin(data, 2, 2, layout=EXACT, network=network)
    assert changes(outcome) == 1
    assert facts(outcome) == facts(plain("binary"))


# --- Checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.drawn(1)
@pytest.mark.parametrize("servers,workers", [(1, 1), (3, 2), (2, 4)])
def test_a_run_resumes_on_other_numbers_to_the_same_bits(
    data_set: Callable[[str], DataSet],
    plain: Callable[[str], Outcome],
    tmp_path: Path,
    servers: int,
    workers: int,
) -> None:
    data, whole = data_set("mixed"), plain("mixed")
    for after in (2, 5):
        hooks = Hooks(checkpoints=tmp_path, stop_after=after)
        stopped = run_twin(data, 2, 2, layout=EXACT, hooks=hooks)
        assert stopped.stopped
        resume = complete(tmp_path)[-1]
        assert not any("before" in name or "earlier" in name for name in loading.vectors(resume))
        again = run_twin(data, servers, workers, layout=EXACT, hooks=Hooks(resume=resume))
        assert again.sha == whole.sha
        assert stopped.passes() + again.passes() == whole.passes()
        assert again.metrics["gap"] == whole.metrics["gap"]


def test_a_checkpoint_is_of_the_one_kind_or_the_other(
    data_set: Callable[[str], DataSet], tmp_path: Path
) -> None:
    for number, layout in enumerate(({}, EXACT)):
        folder, other = tmp_path / str(number), EXACT if not layout else {}
        run_twin(data_set("binary"), layout=layout, hooks=Hooks(checkpoints=folder, stop_after=2))
        with pytest.raises(CheckpointError, match=f"exact_sums = {bool(layout)}, not {bool(other)}"):
            run_twin(data_set("binary"), layout=other, hooks=Hooks(resume=complete(folder)[-1]))


# --- Kernels ---------------------------------------------------------------------------------------------------------


def parts_of(seed: int, ones: bool, parts: int) -> tuple[Any, list[ExactBlocks]]:
    """Make a matrix, and the blocks of so many parts of its rows, told of bounds as the servers would."""
    rng = np.random.default_rng(seed)
    n, m = 60, 9
    x = rng.normal(size=(n, m)) * (rng.random((n, m)) < 0.6) * 10.0 ** rng.integers(-4, 4, m)
    x = ((x != 0.0) if ones else x).astype(np.float32)
    y = np.where(rng.random(n) < 0.5, 1.0, -1.0).astype(np.float32)
    margins, reach = rng.normal(size=n) * 3, rng.random(n) * 4
    radius = (10.0 ** rng.uniform(-2, 0.5, m)).astype(np.float32)
    w = rng.normal(size=m)
    of = rng.integers(0, parts, n)
    data_set: list[ExactBlocks] = []
    for part in range(parts):
        rows = [np.flatnonzero(row) for row in x[of == part]]
        at = np.concatenate([np.zeros(0, int), *rows])
        values = np.concatenate(
            [np.zeros(0, np.float32), *(x[i][x[i] != 0] for i in np.flatnonzero(of == part))]
        )
        examples = Examples(
            y[of == part], np.cumsum([0, *map(len, rows)]), at.astype(np.uint64), None if ones else values
        )
        blocks = ExactBlocks(load_columns([examples]))
        blocks.state[:, kernels.MARGIN], blocks.state[:, kernels.REACH] = (
            margins[of == part],
            reach[of == part],
        )
        blocks.state[:, kernels.ODDS] = np.exp(margins[of == part])
        blocks.radius[:] = radius[blocks.keys.astype(int)]
        blocks.w[:] = w[blocks.keys.astype(int)]
        data_set.append(blocks)
    for blocks in data_set:
        blocks.set_totals(ones, max(each.facts()["largest"] for each in data_set), n)
    return x.astype(float), data_set


def summed(width: int, m: int, parts: list[ExactBlocks], give: Callable[[ExactBlocks], Any]) -> Any:
    total = np.zeros((m, width))
    for blocks in parts:
        total[blocks.keys.astype(int)] += give(blocks).reshape(len(blocks.keys), width)
    return total


@pytest.mark.parametrize("ones", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_sums_of_features_are_exact_in_any_parts_and_near_the_truth(seed: int, ones: bool) -> None:
    results = []
    for parts in (1, 2, 5):
        x, data_set = parts_of(seed, ones, parts)
        m = x.shape[1]
        rows = summed(2 if ones else 10, m, data_set, lambda blocks: blocks.sums(0, len(blocks.keys), ones))
        sums = exact_kernels.start_sums(rows)
        sizes, squares = np.abs(x).sum(0), (x * x).sum(0)
        assert np.array_equal(sums[:, 0], np.count_nonzero(x, axis=0))
        assert sums[:, 1] == pytest.approx(squares, rel=1e-12)
        assert sums[:, 2:].sum(1) == pytest.approx(sizes, rel=1e-12)
        bounds = exact_kernels.bounds_of(sums)
        assert (sizes < 2.0 ** bounds[:, 0]).all() and (2.0 ** bounds[:, 0] <= 2.001 * sizes).all()
        assert (squares < 2.0 ** bounds[:, 1]).all() and (2.0 ** bounds[:, 1] <= 2.001 * squares).all()
        for blocks in data_set:
            blocks.bounds[:] = 2.0 ** bounds[blocks.keys.astype(int)]

        def gradient(blocks: ExactBlocks) -> Any:
            out = np.empty((len(blocks.keys), 2))
            cols = np.arange(len(blocks.keys))
            exact_kernels.block_gradient(
                *blocks.matrix, cols, blocks.radius, 0.3, blocks.state, blocks.bounds, out
            )
            return out

        def plain(blocks: ExactBlocks) -> Any:
            out = np.empty((len(blocks.keys), 2), np.float32)
            kernels.block_gradient(
                *blocks.matrix, np.arange(len(blocks.keys)), blocks.radius, 0.3, blocks.state, out
            )
            return out

        rows = summed(2, m, data_set, gradient)
        full = summed(1, m, data_set, lambda blocks: blocks.full_gradient(np.arange(len(blocks.keys))))
        assert full[:, 0] == pytest.approx(rows[:, 0], abs=0, rel=1e-9)
        if parts == 1:
            state = data_set[0].state
            truth = -x.T @ (state[:, kernels.LABEL] / (1.0 + state[:, kernels.ODDS]))
            assert (np.abs(rows[:, 0] - truth) <= len(x) * 2.0**-50 * sizes).all()
            assert rows == pytest.approx(plain(data_set[0]), rel=1e-5, abs=1e-6 * sizes.max())
        results.append((rows.tobytes(), full.tobytes(), sums.tobytes()))
    assert len(set(results)) == 1


def test_a_small_feature_has_a_bound_of_its_own() -> None:
    """What bounds the sums of all data is far above a feature's own sums; their parts hold what that leaves out."""
    rng = np.random.default_rng(0)
    x = np.abs(rng.normal(size=200)).astype(np.float32) * np.float32(1e-6)
    rows = np.zeros((1, 10))
    state = kernels.new_state(np.ones(200, np.float32))
    colptr, of = np.array([0, 200]), np.arange(200, dtype=np.int32)
    exact_kernels.column_sums(colptr, of, x, state, 1e6, 2.0**20, rows)
    sums = exact_kernels.start_sums(rows)[0]
    assert sums[0] == 200 and sums[2] >= x.astype(float).sum() and sums[2] == pytest.approx(x.sum(), rel=1e-5)
    assert sums[3] == 0.0 and sums[1] == pytest.approx((x.astype(float) ** 2).sum(), rel=1e-3)


# --- Refused jobs --------------------------------------------------------------------------------------------------

REFUSED = [
    ("sparse_lr", {"sparse_lr": {"algorithm": "ftrl"}}, "ftrl learns one mini-batch of each worker at a time"),
    ("sparse_lr", {"consistency": {"tau": 1}}, "only a sequential run is reproducible: use consistency.tau = 0"),
    ("sparse_lr", {"consistency": {"model": "eventual"}}, "only a sequential run is reproducible"),
    ("sparse_lr", {"filters": {"push": ["zstd", "fixed_point"]}}, r"the filter 'fixed_point' \(\[filters\] push\)"),
    ("sparse_lr", {"filters": {"pull": [{"name": "random_skip", "keep": 0.5}]}}, r"'random_skip' \(\[filters\] pull\)"),
    ("lda", {}, "lda draws topics by counts that lag"),
    ("sketch", {"sketch": {"zipf": 1.0}}, r"say how many for all, as in data\.parts = 8"),
    (str(Path(__file__).parent / "programs" / "own.py"), {}, "does not declare support"),
]  # fmt: skip


@pytest.mark.parametrize("program,tables,why", REFUSED)
def test_exact_sums_are_refused_in_one_line_where_they_are_impossible(
    tmp_path: Path, program: str, tables: dict[str, Any], why: str
) -> None:
    with pytest.raises(JobError, match=rf"^{tmp_path}/job\.toml:\d+: exact_sums: .*{why}") as caught:
        job_of(tmp_path, {"job": {"program": program}, "layout": EXACT, **tables})
    assert "\n" not in str(caught.value) and isinstance(caught.value, InputError)
    assert (
        "exact_sums"
        in (tmp_path / "job.toml").read_text().splitlines()[int(str(caught.value).split(":")[1]) - 1]
    )
    job_of(tmp_path, {"job": {"program": program}, "layout": {"exact_sums": False}, **tables})


def test_a_program_of_ones_own_declares_its_support(tmp_path: Path) -> None:
    (tmp_path / "mean.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Settings:\n    count: int = 1\n\n"
        "def schedule(cluster, settings): return {}\n\nclass Worker: pass\n\n"
        "def exact_sums(job): return '' if job.settings.count == 1 else 'only one'\n"
    )
    assert job_of(tmp_path, {"job": {"program": "mean.py"}, "layout": EXACT}).layout.exact_sums
    with pytest.raises(JobError, match="exact_sums: only one"):
        job_of(tmp_path, {"job": {"program": "mean.py"}, "layout": EXACT, "mean": {"count": 2}})


@pytest.mark.parametrize("conservative", [False, True])
def test_a_sketch_of_given_parts_is_the_same_for_any_number_of_workers(
    tmp_path: Path, conservative: bool
) -> None:
    settings = {"width": 200, "batch": 150, "conservative": conservative, "top": 10}
    lines = np.random.default_rng(1).zipf(1.3, 3000) % 500
    words = tmp_path / "words.tsv"
    words.write_text("".join(f"word{number}\n" for number in lines.tolist()))
    outcomes = [
        run_twin(
            words, servers, workers, program="sketch", layout=EXACT, settings=settings, data={"parts": 5}, seed=workers
        )
        for workers, servers in ((1, 1), (2, 3), (5, 2))
    ]  # fmt: skip
    assert len({outcome.sha for outcome in outcomes}) == 1
    assert len({json.dumps(outcome.metrics["top"]) for outcome in outcomes}) == 1


# --- Whole runs ------------------------------------------------------------------------------------------------------


@pytest.mark.ranks
@pytest.mark.once
def test_whole_runs(
    data_set: Callable[[str], DataSet], tmp_path: Path, run_mpips: Callable[..., Any], starter: Any
) -> None:
    """Servers and workers give the twin's bits; so do they where a worker is killed and MPI survives it."""
    data = data_set("mixed")
    job = tmp_path / "job.toml"
    job.write_text(
        '[job]\nprogram = "sparse_lr"\n[layout]\nexact_sums = true\nservers = 2\nworkers = 3\n'
        f'[data]\ntrain = "{data.train}"\n[sparse_lr]\npasses = 5\n'
        f"[heartbeat]\npatience = {patience(1.0):g}\n"
    )
    twin = run_twin(data.train, layout=EXACT, settings={"passes": 5})
    more: list[list[str]] = [[]]
    if starter.mpi.ulfm:
        more.append(["--set", 'faults.kill=[{role="worker", index=1, at_step=9}]'])
    for number, options in enumerate(more):
        folder = tmp_path / str(number)
        done = run_mpips("run", job, "--run-dir", folder, *options, cwd=tmp_path, timeout=180.0)
        assert done.code == 0, done.stderr
        result = json.loads((folder / "result.json").read_text())
        assert len(result["recoveries"]) == number
        assert result["parameters_sha256"] == twin.sha

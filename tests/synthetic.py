"""Small synthetic data sets, their known optimum, and complete sparse_lr jobs on the in-memory twin."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from simulated import simulate

from mpips.config.job_file import Job, load
from mpips.config.program import load_program, table_name
from mpips.config.toml_text import write_toml
from mpips.filters.named import chain_of
from mpips.rundir.folder import RunFolder
from mpips.scheduler.scheduler import Cluster
from mpips.transport.network_faults import Delays, no_delay

F8 = NDArray[np.float64]


@dataclass(frozen=True)
class DataSet:
    """A data set as files and as dense arrays: column j is key `keys[j]`."""

    train: Path
    test: Path
    x: F8
    y: F8
    test_x: F8
    test_y: F8
    keys: NDArray[np.uint64]


def objective(w: F8, x: F8, y: F8, l1: float) -> float:
    """F of a weight vector, in plain NumPy."""
    return float(np.logaddexp(0.0, -y * (x @ w)).sum() + l1 * np.abs(w).sum())


def optimum(x: F8, y: F8, l1: float) -> float:
    """Find the least F to 1e-9 of it, which a dual point proves; l1 > 0.

    Newton's method for an l1 norm, each step by coordinate descent. A test need not wait for scikit-learn's import.
    """
    signed = x * y[:, None]
    w = np.zeros(x.shape[1])
    best = objective(w, x, y, l1)
    for _ in range(1_000):
        odds = 0.5 - 0.5 * np.tanh(0.5 * (signed @ w))
        gradient = -(signed.T @ odds)
        inside = np.clip(odds * min(1.0, l1 / np.abs(gradient).max()), 1e-300, 1.0 - 1e-16)
        dual = -(inside * np.log(inside) + (1.0 - inside) * np.log1p(-inside)).sum()
        if best - dual <= 1e-9 * best:
            return best
        step = newton_step(w, gradient, (signed.T * (odds * (1.0 - odds))) @ signed, l1, 1e-14 * best)
        # Near the optimum F is level to the last bits.
        while objective(w + step, x, y, l1) > best * (1.0 + 1e-13):
            step /= 2.0
        w += step
        best = objective(w, x, y, l1)
    raise AssertionError(f"F = {best} is not known to be the optimum: the dual has {dual}")


def newton_step(w: F8, gradient: F8, hessian: F8, l1: float, enough: float) -> F8:
    """Minimize the quadratic model of the loss, and the l1 norm, by coordinate descent; return the step from w."""
    curve = np.maximum(np.diag(hessian), 1e-12)
    step, slope = np.zeros_like(w), gradient.copy()
    for _ in range(300):
        largest = 0.0
        for j in range(len(w)):
            at = w[j] + step[j] - slope[j] / curve[j]
            change = np.sign(at) * max(abs(at) - l1 / curve[j], 0.0) - w[j] - step[j]
            step[j] += change
            slope += change * hessian[:, j]
            largest = max(largest, change * change * curve[j])
        if largest < enough:
            break
    return step


def svmlight(x: F8, y: F8, keys: NDArray[np.uint64]) -> str:
    """Write rows of float32 numbers so that they are read back as they are."""
    lines = []
    for row, label in zip(x, y, strict=True):
        at = np.flatnonzero(row)
        lines.append(f"{int(label):+d} " + " ".join(f"{keys[j]}:{np.float32(row[j])!s}" for j in at))
    return "\n".join(lines) + "\n"


def make(folder: Path, kind: str = "real", n: int = 200, m: int = 40, seed: int = 0) -> DataSet:
    """Make a data set.

    kind: "binary", sparse ones of very unequal frequency; "real"; "correlated", a few factors behind all columns;
    "unnormalised", columns of scales from 0.001 to 1,000; "duplicates", every column twice, some thrice.
    """
    rng = np.random.default_rng([seed, n, m])
    total = n + n // 3
    x = rng.normal(size=(total, m)) * (rng.random((total, m)) < 0.25)
    if kind == "binary":
        x = (rng.random((total, m)) < 1.0 / (1.5 + np.arange(m))).astype(float)
    elif kind == "correlated":
        x = rng.normal(size=(total, 4)) @ rng.normal(size=(4, m)) + 1.5 * rng.normal(size=(total, m))
    elif kind == "unnormalised":
        x *= 10.0 ** rng.uniform(-3, 3, m)
    elif kind == "duplicates":
        half = x[:, : m // 2]
        x = np.hstack([half, half, half[:, : m // 6]])[:, :m]
    else:
        assert kind == "real"
    x = x.astype(np.float32).astype(float)
    m = x.shape[1]
    weights = rng.normal(size=m) * (rng.random(m) < 0.3) / np.maximum(np.abs(x).mean(0), 1e-9) * 0.2
    y = np.where(x @ weights + rng.normal(size=total) > 0, 1.0, -1.0)
    keys = np.sort(rng.choice(np.arange(1, 50 * m), m, replace=False)).astype(np.uint64)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in (("train", slice(0, n)), ("test", slice(n, total))):
        (folder / f"{name}.svm").write_text(svmlight(x[part], y[part], keys))
    return DataSet(folder / "train.svm", folder / "test.svm", x[:n], y[:n], x[n:], y[n:], keys)


@dataclass(frozen=True)
class Outcome:
    """The outcome of a job on the twin; `log` is its metrics.jsonl."""

    metrics: dict[str, Any]
    sha: str
    keys: NDArray[np.uint64]
    values: F8
    log: list[dict[str, Any]]
    stopped: bool = False
    encoding: dict[str, Any] | None = None
    """That of tables, in the exported model."""

    def passes(self, name: str = "objective") -> list[Any]:
        """One fact of every pass."""
        return [event[name] for event in self.log if event["event"] == "pass"]

    def weights(self, keys: NDArray[np.uint64]) -> F8:
        """The exported model as a dense vector over `keys`."""
        dense = np.zeros(len(keys))
        at = np.searchsorted(keys, self.keys)
        assert np.array_equal(keys[at], self.keys)
        dense[at] = self.values
        return dense


@dataclass
class Hooks:
    """The actions of a test during a run."""

    resume: Path | None = None
    checkpoints: Path | None = None
    stop_after: int = 0
    """Ask the run to stop once so many passes are over, as a signal would."""
    stop_within: int = 0
    """The same once the workers have `learn`t so many times."""
    on_event: Callable[[Cluster, str, dict[str, Any]], None] = lambda *_: None
    """Told of each line of metrics.jsonl."""


def job_of(folder: Path, tables: dict[str, dict[str, Any]]) -> Job:
    """Write a job file and load it."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.toml"
    path.write_text(write_toml(tables))
    return load(path)


def run_twin(
    data_set: DataSet | Path | Sequence[Path],
    servers: int = 1,
    workers: int = 1,
    *,
    delays: Delays = no_delay,
    seed: int = 0,
    test: Path | None = None,
    hooks: Hooks | None = None,
    program: str = "sparse_lr",
    network: dict[str, Any] | None = None,
    **tables: dict[str, Any],
) -> Outcome:
    """Run a whole job in this process, in simulated time; keyword arguments are tables of the job file.

    `network` goes to the simulation: faults, spares, replicas and such.
    """
    hooks = hooks or Hooks()
    if isinstance(data_set, DataSet):
        train: str | list[str] = str(data_set.train)
        test = data_set.test if test is None else test
    else:
        train = str(data_set) if isinstance(data_set, Path) else [str(path) for path in data_set]
    data = {"train": train, **({"test": str(test)} if test is not None else {}), **tables.pop("data", {})}
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        name = table_name(program)
        own = tables.pop("settings", {})
        head = {"program": program, **tables.pop("job", {})}
        job = job_of(folder / "job", {"job": head, "data": data, name: own, **tables})
        loaded = load_program(job.program, job.base)

        def schedule(cluster: Cluster) -> Outcome:
            cluster.checkpoints = hooks.checkpoints or folder / "checkpoints"
            cluster.resume = hooks.resume
            _stop_when(cluster, hooks)
            metrics = loaded.schedule(cluster, job.settings)
            cluster.coordinator.settle()
            sha = " ".join(cluster.digest(vector) for vector in cluster.vectors.values())
            cluster.close()
            run = RunFolder(folder / "run")
            log = [json.loads(line) for line in run.metrics.read_text().splitlines()]
            keys, values, encoding = np.empty(0, np.uint64), np.empty(0), None
            if (run.path / "model.npz").exists():
                with np.load(run.path / "model.npz") as model:
                    keys, values = model["keys"], model.get("values", values)
                    encoding = json.loads(str(model["encoding"])) if "encoding" in model else None
            return Outcome(metrics, sha, keys, values, log, cluster.stopped_early, encoding)

        (folder / "run").mkdir()
        outcome: Outcome = simulate(
            schedule, loaded.worker, servers=servers, workers=workers, delays=delays, seed=seed, job=job,
            folder=folder / "run", filters=lambda: (chain_of(job.filters.push), chain_of(job.filters.pull)),
            **(network or {}),
        )  # fmt: skip
        return outcome


def _stop_when(cluster: Cluster, hooks: Hooks) -> None:
    event, start, learnt = cluster.event, cluster.workers.start, 0

    def reported(name: str, **facts: Any) -> None:
        event(name, **facts)
        hooks.on_event(cluster, name, facts)
        if name == "pass" and facts["pass"] == hooks.stop_after:
            cluster.orders.stop = "SIGUSR1"

    def started(function: str, *args: Any, **how: Any) -> Any:
        nonlocal learnt
        learnt += function == "learn"
        if function == "learn" and learnt == hooks.stop_within:
            cluster.orders.stop = "SIGUSR1"
        return start(function, *args, **how)

    cluster.event = reported  # type: ignore[method-assign]
    cluster.workers.start = started  # type: ignore[method-assign]

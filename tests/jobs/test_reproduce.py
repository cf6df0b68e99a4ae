"""The jobs that come with mpips, recorded asynchronously while ranks die, and replayed to the same bits."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyData, patience
from simulated import simulate
from synthetic import job_of

from mpips.config.program import load_program
from mpips.replay.history import read_history
from mpips.scheduler.scheduler import Cluster
from mpips.transport.network_faults import Fault, random_delays

EVENTUAL, BOUNDED = {"model": "eventual"}, {"model": "bounded", "tau": 4}
JOBS: dict[str, dict[str, Any]] = {
    "darlin": {"consistency": BOUNDED, "sparse_lr": {"passes": 6}},
    "ftrl": {"consistency": EVENTUAL, "sparse_lr": {"algorithm": "ftrl", "batch": 5, "passes": 2}},
    "lda": {"consistency": {"model": "bounded", "tau": 2}, "lda": {"topics": 5, "sweeps": 3}},
    "sketch": {"sketch": {"zipf": 1.1, "items": 4000, "keys": 500, "batch": 200, "width": 256, "exact": 4}},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Make small data for each program."""
    rng, folder = random.Random(3), tmp_path_factory.mktemp("data")
    lines = []
    for _ in range(100):
        of = rng.choice((0, 10))
        words = sorted({of + rng.randrange(10) for _ in range(6)})
        lines.append(f"{len(words)} " + " ".join(f"{word}:{1 + rng.randrange(3)}" for word in words))
    (folder / "train.ldac").write_text("\n".join(lines) + "\n")
    examples = [
        f"{rng.choice('+-')}1 "
        + " ".join(f"{key}:{rng.random():.3f}" for key in sorted(rng.sample(range(1, 40), 5)))
        for _ in range(200)
    ]
    (folder / "train.svm").write_text("\n".join(examples) + "\n")
    return {"lda": folder / "train.ldac", "sparse_lr": folder / "train.svm"}


def run(name: str, data: dict[str, Path], folder: Path, **how: Any) -> dict[str, str]:
    """Run a job on the twin; return what its vectors are in the end."""
    program = "sparse_lr" if name in ("darlin", "ftrl") else name
    tables = {"job": {"program": program}, "layout": {"hand_over": name == "ftrl"}, **JOBS[name]}
    if program in data:
        tables["data"] = {"train": str(data[program])}
    job = job_of(folder / "job", tables)
    loaded = load_program(job.program, job.base)

    def schedule(cluster: Cluster) -> dict[str, str]:
        cluster.checkpoints = folder / "checkpoints"
        loaded.schedule(cluster, job.settings)
        return {vector.spec.name: cluster.digest(vector) for vector in cluster.vectors.values()}

    (folder / "run").mkdir(exist_ok=True)
    (folder / "run" / "metrics.jsonl").unlink(missing_ok=True)
    layout = {"servers": 2, "workers": 3, "spares": 1}
    # A successor of the scheduler continues from a snapshot.
    how = {"compacted_every": 8, **layout, **how}
    found: dict[str, str] = simulate(schedule, loaded.worker, job=job, folder=folder / "run", **how)
    return found


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", JOBS)
def test_a_job_in_which_ranks_die_is_done_again(
    name: str, seed: int, data: dict[str, Path], tmp_path: Path
) -> None:
    rng = random.Random(f"{name} {seed}")
    faults = [
        Fault("kill", rank, after_messages=rng.randrange(100, 800)) for rank in ((3, 1) if seed else (4, 0))
    ]
    how = {"record": tmp_path / "record", "replicas": 1, "faults": faults}
    first = run(name, data, tmp_path, delays=random_delays(seed, delay=0.004), seed=seed, **how)
    read_history(tmp_path / "record").save(tmp_path / "replay")
    assert (
        run(name, data, tmp_path, delays=random_delays(9, delay=0.004), seed=9, replay=tmp_path / "replay")
        == first
    )


@pytest.mark.ranks
@pytest.mark.once
def test_the_command_does_a_run_again(
    tiny_data: TinyData, tmp_path: Path, run_mpips: Callable[..., Any], starter: Any
) -> None:
    job = tmp_path / "job.toml"
    job.write_text(
        f'[job]\nprogram = "sparse_lr"\n[data]\ntrain = "{tiny_data.train}"\n[layout]\nservers = 2\nworkers = 2\n'
        '[sparse_lr]\nalgorithm = "ftrl"\nbatch = 4\n[consistency]\nmodel = "eventual"\n[record]\non = true\n'
        f"[heartbeat]\npatience = {patience(1.0):g}\n"
        f'[checkpoint]\ndirectory = "{tmp_path}/kept"\n'
    )
    kill = 'faults.kill=[{role="server",index=0,at_step=15},{role="worker",index=1,at_step=9}]'
    fault = ["--set", kill] if starter.mpi.ulfm else []
    done = run_mpips("run", job, "--run-dir", tmp_path / "first", *fault)
    assert done.code == 0, done.stderr
    result = json.loads((tmp_path / "first" / "result.json").read_text())
    assert len(result["recoveries"]) == (2 if fault else 0)
    assert 0 < result["record"]["bytes"] < 100_000
    again = run_mpips("reproduce", tmp_path / "first", "--run-dir", tmp_path / "again")
    assert again.code == 0, again.stderr
    written = tomllib.loads((tmp_path / "again" / "job.toml").read_text())["checkpoint"]["directory"]
    assert written == str(tmp_path / "again" / "checkpoints"), "nothing is written where the run says"
    assert again.last_line.startswith(
        f"mpips: the same bits: parameters_sha256 is {result['parameters_sha256']}"
    )
    assert "mpips: the inputs are the recorded ones: 1 by sha256" in again.stderr

    record = tmp_path / "first" / "record"
    path = next(record.glob("worker-*.bin"))
    path.write_bytes(path.read_bytes()[:-8])
    torn = run_mpips("reproduce", tmp_path / "first")
    assert (torn.code, "truncated" in torn.last_line) == (2, True)
    tiny = run_mpips("reproduce", tmp_path / "again")
    assert (tiny.code, "was not recorded" in tiny.last_line) == (2, True)

"""Jobs that are asked to stop after training: the model is written; the resumed run evaluates the same weights."""

from __future__ import annotations

import gzip
import json
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Finished, Started
from synthetic import Hooks, Outcome, make, run_twin

from mpips.config.program import load_program
from mpips.scheduler import stopping
from mpips.scheduler.scheduler import Cluster

JOBS: dict[str, dict[str, Any]] = {
    "darlin": {"settings": {"passes": 3}},
    "ftrl": {"settings": {"algorithm": "ftrl", "batch": 16, "passes": 2}},
    "lda": {"program": "lda", "settings": {"topics": 3, "sweeps": 3}},
    "sketch": {"program": "sketch", "settings": {"zipf": 1.1, "items": 4000, "keys": 100, "batch": 500}},
}
LAST = {"darlin": "auc", "ftrl": "auc", "lda": "perplexity", "sketch": "distinct"}
"""A metric of the evaluation."""


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., Outcome]:
    """Run a job, with `workers` and further settings."""
    data_set = make(tmp_path / "made", "real")
    documents = tmp_path / "train.ldac"
    documents.write_text("".join(f"2 {at % 9}:1 {9 + at % 11}:2\n" for at in range(40)))

    def go(job: str, hooks: Hooks, workers: int = 2, **more: Any) -> Outcome:
        tables = dict(JOBS[job])
        tables["settings"] = tables["settings"] | more
        if job == "lda":
            return run_twin(documents, 1, workers, test=documents, hooks=hooks, **tables)
        return run_twin([] if job == "sketch" else data_set, 1, workers, hooks=hooks, **tables)

    return go


@pytest.mark.parametrize("job", JOBS)
def test_a_run_that_is_stopped_in_its_evaluation_is_resumed_with_the_same_bits(
    job: str, run: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = run(job, Hooks())
    module = load_program(JOBS[job].get("program", "sparse_lr"), tmp_path).module
    real: Any = module.finish  # type: ignore[attr-defined]

    def asked(cluster: Cluster, *args: Any, **how: Any) -> Any:
        cluster.orders.stop = "SIGTERM"
        return real(cluster, *args, **how)

    with monkeypatch.context() as patched:
        patched.setattr(module, "finish", asked)
        patched.setattr(stopping, "LONG", 0.0)
        cut = run(job, Hooks(checkpoints=tmp_path / "checkpoints"))
    assert cut.stopped and cut.sha == whole.sha
    assert "model" in cut.metrics and LAST[job] not in cut.metrics
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    again = run(job, Hooks(resume=checkpoint))
    assert again.sha == whole.sha and not again.stopped
    assert again.metrics[LAST[job]] == pytest.approx(whole.metrics[LAST[job]])
    if job in ("darlin", "ftrl"):
        assert again.metrics == whole.metrics | {"model": again.metrics["model"]}
        assert run(job, Hooks(resume=checkpoint), passes=5).metrics["passes"] == 5, "it may go on"


@pytest.mark.ranks
@pytest.mark.once
def test_a_signal_ends_an_evaluation_that_takes_minutes(
    start_mpips: Callable[..., Started], run_mpips: Callable[..., Finished], tmp_path: Path
) -> None:
    lines = b"+1 1:1\n-1 2:1\n"
    (tmp_path / "small.svm").write_bytes(lines * 8)
    member = gzip.compress(lines * (1 << 21), 1)
    with (tmp_path / "large.svm.gz").open("wb") as file:
        for _ in range(256):
            file.write(member)
    (tmp_path / "job.toml").write_text(
        '[job]\nprogram = "sparse_lr"\nname = "scored"\n[sparse_lr]\npasses = 2\n'
        '[layout]\nservers = 1\nworkers = 2\n[data]\ntrain = "small.svm"\ntest = "large.svm.gz"\n'
    )
    run = tmp_path / "run"
    running = start_mpips("run", "job.toml", "--run-dir", run, cwd=tmp_path)
    running.wait_for((run / "model.txt").exists)
    running.process.send_signal(signal.SIGTERM)
    done = running.finish(30.0)
    result = json.loads((run / "result.json").read_text())
    assert done.code == 85, done.stderr
    assert (result["status"], result["stopped_by"], result["evaluation_cut_by"]) == (
        "stopped",
        "SIGTERM",
        "SIGTERM",
    )
    assert result["metrics"]["model"] == str(run / "model.npz") and "auc" not in result["metrics"]
    again = ("--run-dir", run, "--resume", "latest", "--set", "data.test=small.svm")
    done = run_mpips("run", "job.toml", *again, cwd=tmp_path)
    assert done.code == 0, done.stderr
    resumed = json.loads((run / "result.json").read_text())
    assert resumed["metrics"]["auc"] == 1.0
    assert resumed["parameters_sha256"] == result["parameters_sha256"]

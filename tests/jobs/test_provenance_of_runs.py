"""The provenance of complete runs and how they ended, in their folders and checkpoints."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpips.checkpoint.manifest import complete, read_manifest

PROGRAM = """
from dataclasses import dataclass

import numpy as np

from mpips import Cluster, Context, VectorSpec


@dataclass(frozen=True)
class Settings:
    steps: int = 4
    wrong: bool = False


def schedule(cluster: Cluster, settings: Settings) -> dict:
    done = (cluster.restore() or {"done": 0})["done"]
    w = cluster.vectors.get("w") or cluster.create_vector(VectorSpec("w", extent=100, update="add"))
    for step in range(done + 1, settings.steps + 1):
        cluster.workers.call("push")
        cluster.event("step", step=step, total=float(step))
        if cluster.due(step):
            cluster.checkpoint(step, {"done": step})
    if settings.wrong:
        raise RuntimeError("no good")
    return {"steps": settings.steps}


class Worker:
    def __init__(self, context: Context) -> None:
        self.context = context

    def push(self) -> None:
        keys = np.arange(100, dtype=np.uint64)
        w = self.context.vectors["w"]
        self.context.node.wait(w.push(keys, np.full(100, 0.5)))
"""


@pytest.fixture
def place(tmp_path: Path, tiny_data: Any) -> Path:
    (tmp_path / "adding.py").write_text(PROGRAM)
    (tmp_path / "job.toml").write_text(
        f'[job]\nprogram = "adding.py"\nseed = 3\n[layout]\nservers = 2\n[data]\ntrain = "{tiny_data.train}"\n'
        '[checkpoint]\nevery = 2\ndirectory = "ck"\nkeep = 9\n[provenance]\nhash_inputs = "full"\n'
    )
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "adding.py"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    return tmp_path


def read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text()))


@pytest.mark.ranks
@pytest.mark.once
def test_a_run_reports_where_it_came_from_and_how_it_ended(
    place: Path, run_mpips: Callable[..., Any], tiny_data: Any
) -> None:
    done = run_mpips("run", place / "job.toml", "--run-dir", place / "one", cwd=place)
    assert done.code == 0, done.stderr
    run = read(place / "one" / "run.json")
    assert run["exit"] == {"status": "completed", "code": 0, "reason": "the program ended"}
    assert run["repository"]["path"] == str(place)
    assert run["repository"]["dirty"] is False
    assert run["program"]["file"] == str(place / "adding.py")
    assert run["seeds"]["job.seed"] == 3
    assert [(each["role"], each["path"], len(each["sha256"])) for each in run["inputs"]] == [
        ("train", str(tiny_data.train), 64)
    ]
    assert [rank["role"] for rank in run["ranks"]] == ["scheduler", "server", "server", "worker"]
    result = read(place / "one" / "result.json")
    assert run["outputs"]["parameters_sha256"] == result["parameters_sha256"]
    assert [each["step"] for each in run["outputs"]["checkpoints"]] == [2, 4]
    for path in complete(place / "ck"):
        manifest = read_manifest(path)
        assert manifest["provenance"]["id"] == run["id"]
        assert "exit" not in manifest["provenance"]

    # Resumed with other settings, on another layout, it fails: what it left says so, and whose child it is.
    (place / "adding.py").write_text(PROGRAM + "\n")
    options = [
        "--resume",
        place / "ck" / "step-000002",
        "--set",
        "adding.steps=6",
        "--set",
        "adding.wrong=true",
    ]
    failed = run_mpips(
        "run", place / "job.toml", "--run-dir", place / "two", "--servers", "1", *options, cwd=place
    )
    assert failed.code not in (0, 2)
    second = read(place / "two" / "run.json")
    assert second["exit"]["status"] == "failed"
    assert "no good" in second["exit"]["reason"]
    assert "outputs" not in second
    assert second["repository"]["dirty"] is True
    (parent,) = second["ancestry"]
    assert (parent["id"], parent["step"]) == (run["id"], 2)
    assert parent["manifest_sha256"] == read_manifest(place / "ck" / "step-000002")["sha256"]
    newest = complete(place / "ck")[-1]
    assert read_manifest(newest)["provenance"]["ancestry"] == [parent]

    # The same step of both is the same bits.
    compared = subprocess.run(
        [sys.executable, "-m", "mpips.cli", "diff", "--json", place / "ck/step-000004", place / "ck/step-000004-2"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert compared.returncode == 0, compared.stdout + compared.stderr
    groups = {group for group, pairs in json.loads(compared.stdout)["provenance"].items() if pairs}
    assert groups == {"job", "command", "source", "layout"}

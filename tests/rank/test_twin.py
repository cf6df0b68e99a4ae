"""`mpips run --twin`: a whole job in this process, in which a debugger stops."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mpips import KEY128, InputError, Run, load_model
from mpips.cli.main import main
from mpips.config.program import load_program
from mpips.storage import updates

PROGRAM = """
from dataclasses import dataclass
import numpy as np
from mpips import VectorSpec, update

@dataclass(frozen=True)
class Settings:
    fail: bool = False
    refuse: bool = False

@update("twin_add")
def add(values, state, slots, rows, settings):
    breakpoint()
    values[slots] += rows

def schedule(cluster, settings):
    w = cluster.create_vector(VectorSpec("w", update="twin_add"))
    cluster.workers.call("work", {"fail": settings.fail})
    if settings.refuse:
        w.pull(np.array([2, 1], np.uint64))
    cluster.say("worked")
    return {"sum": float(w.pull(np.arange(3, dtype=np.uint64)).result().sum())}

class Worker:
    def __init__(self, context):
        self.context = context

    def work(self, fail):
        breakpoint()
        self.context.vectors["w"].push(np.array([1], np.uint64), np.ones(1) / (0 if fail else 1))
        assert not fail
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    # What the program registers goes with it.
    monkeypatch.setattr("mpips.storage.updates._updates", dict(updates._updates))
    (tmp_path / "twinned.py").write_text(PROGRAM)
    path = tmp_path / "job.toml"
    path.write_text('[job]\nprogram = "twinned.py"\n[layout]\nservers = 2\nworkers = 2\n')
    return path


def test_a_debugger_stops_in_every_role(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped: list[tuple[str, str]] = []

    def stop() -> None:
        code = sys._getframe(1).f_code
        stopped.append((Path(code.co_filename).name, code.co_name))

    monkeypatch.setattr(sys, "breakpointhook", stop)
    assert main(["run", "--twin", str(job), "--run-dir", "run"]) == 0
    said = capsys.readouterr()
    assert said.out == "worked\nsum 2\n" and said.err.startswith("mpips: completed; run folder:")
    assert sorted(set(stopped)) == [("twinned.py", "add"), ("twinned.py", "work")] and len(stopped) == 4
    run = Run("run")
    assert run.status == "completed" and run.metrics == {"sum": 2.0}
    assert main(["run", "--twin", str(job), "--run-dir", "run"]) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_an_error_has_the_programs_traceback(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "breakpointhook", lambda: None)
    assert main(["run", "--twin", str(job), "--run-dir", "a", "--set", "twinned.fail=true"]) == 1
    said = capsys.readouterr().err
    assert "assert not fail" in said or "/ (0 if fail else 1)" in said
    assert "mpips: failed: rank " in said.splitlines()[-1]
    assert json.loads(Path("a/result.json").read_text())["status"] == "failed"
    assert main(["run", "--twin", str(job), "--run-dir", "b", "--set", "twinned.refuse=true"]) == 2
    assert "keys" in capsys.readouterr().err.splitlines()[-1]


def test_a_job_that_comes_with_mpips(job: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("train.txt").write_text("church pope church pope\npeace yeltsin peace yeltsin\n" * 5)
    settings = "[lda]\ntopics = 2\nsweeps = 3\n[checkpoint]\nevery = 2\n"
    job.write_text('[job]\nprogram = "lda"\n[data]\ntrain = "train.txt"\n' + settings)
    assert main(["run", "--twin", str(job), "--run-dir", "a", "--workers", "2"]) == 0
    assert "log likelihood" in capsys.readouterr().out
    assert load_model("a").transform(texts=["church"]).shape == (1, 2)
    assert main(["run", "--twin", str(job), "--run-dir", "b", "--resume", "checkpoints/lda/step-000002"]) == 0
    assert "resumed from checkpoints/lda/step-000002" in capsys.readouterr().out
    assert [each["sweep"] for each in Run("b").passes] == [3]


@pytest.mark.parametrize("key_bits", [64, 128])
def test_the_vectors_at_the_end_can_be_read(
    job: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], key_bits: int
) -> None:
    monkeypatch.setattr("mpips.worker.export.EXPORT_ROWS", 3)
    Path("twinned.py").write_text(
        PROGRAM[: PROGRAM.index("def schedule")].replace("breakpoint()", "")
        + f"""
def schedule(cluster, settings):
    for name, dtype, width in (("w", "float64", 1), ("rows", "float32", 2), ("none", "int64", 1)):
        cluster.create_vector(VectorSpec(name, dtype, width, key_bits={key_bits}))
    keys = np.zeros((10, 2), np.uint64)
    keys[:, 0] = np.arange(10, dtype=np.uint64) << np.uint64(60)
    keys = keys if {key_bits} == 128 else keys[:, 0].copy()
    cluster.vectors["w"].push_wait(keys, np.arange(1.0, 11.0))
    cluster.vectors["rows"].push_wait(keys, np.ones((10, 2), np.float32))

class Worker:
    def __init__(self, context):
        pass
"""
    )
    assert main(["run", "--twin", str(job), "--run-dir", "run"]) == 0
    run = Run("run")
    keys, weights = run.vector("w")
    assert keys.dtype == (KEY128 if key_bits == 128 else np.uint64) and weights.tolist() == list(range(1, 11))
    assert run.vector("rows")[1].shape == (10, 2) and run.vector("rows")[1].dtype == np.float32
    assert len(run.vector("none")[0]) == 0
    with pytest.raises(InputError, match="has no vector other"):
        run.vector("other")
    assert main(["export", "run", "--vector", "w", "--out", "w.tsv"]) == 0
    assert Path("w.tsv").read_text().splitlines()[3].split("\t")[1] == "4.0"
    # So a file of this name that no run has written is not replaced.
    assert "vectors.h5" in load_program("twinned.py", Path.cwd()).outputs
    assert main(["run", "--twin", str(job), "--run-dir", "other", "--set", "checkpoint.at_end=false"]) == 0
    assert not Path("other", "vectors.h5").exists()

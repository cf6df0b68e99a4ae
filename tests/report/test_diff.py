"""Differences between two runs: provenance, metrics, parameters, and their presentation."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpips.checkpoint.checkpoint import commit
from mpips.checkpoint.writing import Saved, write_shard
from mpips.cli import main
from mpips.cli.runs.diff import Paint, report
from mpips.ranges import ALL
from mpips.report import diff
from mpips.rundir.folder import RunFolder, write_json, write_text
from mpips.storage.segment import Rows
from mpips.storage.updates import VectorSpec

FACTS: dict[str, Any] = {
    "id": "1",
    "started": "2026-01-02T03:04:05+00:00",
    "argv": ["mpips", "job.toml", "--set", "job.seed=1", "--run-dir", "x"],
    "python": "3.12.1",
    "mpi": "MPI X",
    "packages": {"numpy": "2.0"},
    "environment": {"OMP_NUM_THREADS": "1", "PMIX_NAMESPACE": "1", "SLURM_JOB_ID": "7"},
    "source": {"commit": "c0ffee", "dirty": False, "diff_sha256": None},
    "job": {
        "job": {"program": "toy", "seed": 1, "base": "/a"},
        "layout": {"servers": 1},
        "toy": {"rate": 0.5},
    },
    "inputs": [{"role": "train", "path": "/d/a.svm", "bytes": 9, "sha256": "aa"}],
    "ranks": [
        {"rank": 0, "role": "scheduler", "index": 0, "host": "n0"},
        {"rank": 1, "role": "server", "index": 0, "host": "n0", "ranges": ["0:16"]},
    ],
}
RESULT = {
    "status": "completed",
    "seconds": {"train": 1.0},
    "metrics": {"objective": 10.0, "passes": 2, "model": "/x/model.npz"},
    "parameters_sha256": "ab",
}
PASSES = [
    {"event": "pass", "pass": 1, "objective": 12.0, "seconds": 0.1, "rate": 0.5},
    {"event": "checkpoint", "step": 1, "folder": "/nowhere", "noted": True},
    {"event": "pass", "pass": 2, "objective": 10.0, "seconds": 0.2, "rate": 0.5},
]


def write_run(
    path: Path, facts: dict[str, Any] | None = None, result: dict[str, Any] | None = None,
    events: list[dict[str, Any]] = PASSES,
) -> Path:  # fmt: skip
    folder = RunFolder(path)
    if facts is not None:
        write_json(folder.run, facts)
    if result is not None:
        write_json(folder.result, result)
    write_text(folder.metrics, "".join(json.dumps(each) + "\n" for each in events))
    return path


def write_checkpoint(
    path: Path, rows: dict[int, float], step: int = 1, facts: dict[str, Any] | None = None
) -> Path:
    path.mkdir(parents=True)
    keys = np.array(sorted(rows), np.uint64)
    values = np.array([[rows[key]] for key in sorted(rows)])
    saved = Saved(VectorSpec("w", update="assign"), {}, [ALL], Rows(keys, values, {}))
    commit(path, [write_shard(path, 0, {"w": saved})], {"step": step, "job": FACTS["job"]}, facts)
    return path


def same_again(**changes: Any) -> dict[str, Any]:
    """Return the provenance of the same thing, run once more."""
    return FACTS | {
        "id": "2", "started": "2027-01-02T03:04:05+00:00", "argv": ["mpips", "job.toml", "--run-dir", "y"],
        "environment": {"OMP_NUM_THREADS": "1", "PMIX_NAMESPACE": "2", "SLURM_JOB_ID": "8"},
    } | changes  # fmt: skip


def both(
    tmp_path: Path, facts: dict[str, Any], result: dict[str, Any], **how: Any
) -> tuple[diff.Side, diff.Side]:
    a = write_run(tmp_path / "a", FACTS, RESULT)
    return diff.side(a), diff.side(write_run(tmp_path / "b", facts, result, **how))


def test_the_same_thing_run_again_is_the_same(tmp_path: Path) -> None:
    a, b = both(tmp_path, same_again(), RESULT)
    assert diff.provenance(a, b) == {group: [] for group in diff.GROUPS}
    assert all(each.difference == 0 for each in diff.metrics(a, b))
    assert all(each.first is None for each in diff.curves(a, b))
    assert diff.parameters(a, b).same is True


@pytest.mark.parametrize(
    ("changes", "group", "pair"),
    [
        ({"job": FACTS["job"] | {"layout": {"servers": 2}}}, "job", ("layout.servers", 1, 2)),
        ({"packages": {"numpy": "2.1"}}, "versions", ("numpy", "2.0", "2.1")),
        ({"packages": {}}, "versions", ("numpy", "2.0", None)),
        ({"source": {"commit": "c0ffee", "diff_sha256": "dd"}}, "source", ("mpips: changes", "none", "dd")),
        ({"environment": {"OMP_NUM_THREADS": "4"}}, "environment", ("OMP_NUM_THREADS", "1", "4")),
        ({"argv": ["mpips", "other.toml"]}, "command", ("arguments", "job.toml", "other.toml")),
        ({"inputs": [{"role": "train", "path": "/d/b.svm", "bytes": 9, "sha256": "bb"}]}, "inputs",
         ("train 1", "a.svm, 9 bytes, sha256 aa", "b.svm, 9 bytes, sha256 bb")),
        ({"inputs": [{"role": "train", "path": "/d/a.svm", "bytes": 8, "sample_sha256": "cc"}]}, "inputs",
         ("train 1", "a.svm, 9 bytes, bytes 9", "a.svm, 8 bytes, bytes 8")),
        ({"inputs": []}, "inputs", ("train 1", "a.svm, 9 bytes,  ?", None)),
        ({"ranks": [FACTS["ranks"][0], FACTS["ranks"][1] | {"host": "n1"}]}, "machine", ("rank 1", "n0", "n1")),
        ({"ranks": FACTS["ranks"][:1]}, "layout", ("rank 1", "server 0, keys 0:16", None)),
        ({"batch": {"partition": "long"}}, "batch", ("partition", None, "long")),
    ],
)  # fmt: skip
def test_each_difference_is_in_its_group(
    tmp_path: Path, changes: dict[str, Any], group: str, pair: tuple[str, Any, Any]
) -> None:
    a, b = both(tmp_path, same_again(**changes), RESULT)
    found = diff.provenance(a, b)
    assert found.pop(group) == [diff.Pair(*pair)]
    assert not any(found.values())


def test_a_file_of_another_name_with_the_same_contents_is_the_same(tmp_path: Path) -> None:
    moved = [{"role": "train", "path": "/elsewhere/z.svm", "bytes": 9, "sha256": "aa", "modified": "later"}]
    a, b = both(tmp_path, same_again(inputs=moved), RESULT)
    assert diff.provenance(a, b)["inputs"] == []


def test_metrics_are_compared_by_name(tmp_path: Path) -> None:
    metrics = {"objective": 8.0, "auc": 0.9, "model": "/y/model.npz", "perplexity": None}
    a, b = both(tmp_path, same_again(), RESULT | {"metrics": metrics, "seconds": {"train": 2.0}})
    objective, passes, auc = diff.metrics(a, b)
    assert (objective.name, objective.difference, objective.relative) == ("objective", -2.0, 0.2)
    assert (passes.a, passes.b, passes.difference) == (2, None, None)
    assert (auc.a, auc.b, auc.relative) == (None, 0.9, None)
    (train,) = diff.costs(a, b)
    assert (train.name, train.difference) == ("seconds train", 1.0)


def test_curves_name_the_first_pass_that_differs(tmp_path: Path) -> None:
    events = [
        {"event": "pass", "pass": 1, "objective": 12.0, "seconds": 9.0, "rate": 0.5},
        {"event": "pass", "pass": 2, "objective": 11.0, "seconds": 9.0, "rate": 0.5},
        {"event": "pass", "pass": 3, "objective": 10.0, "seconds": 9.0, "rate": 0.5},
    ]
    a, b = both(tmp_path, same_again(), RESULT, events=events)
    assert diff.curves(a, b) == [
        diff.CurveDifference("pass", "objective", (2, 3), 2, 10.0, 11.0),
        diff.CurveDifference("pass", "rate", (2, 3), None, None, None),
    ]


def test_parameters_without_hashes_or_files_are_not_known(tmp_path: Path) -> None:
    a, b = both(tmp_path, same_again(), {"status": "failed"})
    found = diff.parameters(a, b)
    assert (found.same, found.compared) == (None, "nothing")
    assert "--set checkpoint.every" in found.note


def test_parameters_that_are_nowhere_are_compared_by_hash(tmp_path: Path) -> None:
    a, b = both(tmp_path, same_again(), RESULT | {"parameters_sha256": "cd"})
    found = diff.parameters(a, b)
    assert (found.same, found.compared, found.sha256) == (False, "parameters_sha256", ("ab", "cd"))
    assert "--set checkpoint.every" in found.note


def test_runs_are_compared_by_checkpoints_of_the_same_step(tmp_path: Path) -> None:
    paths = []
    for name, run, at in (("a", "1", 1.0), ("b", "2", 2.0)):
        events = []
        for step in (1, 2, 3):
            if name == "a" and step == 3:
                continue
            path = write_checkpoint(
                tmp_path / "ck" / name / f"step-{step:06d}", {7: at}, step, FACTS | {"id": run}
            )
            # A stranger's line may name no step; the checkpoint does.
            events.append({"event": "checkpoint", "folder": str(path)} | ({"step": step} if step > 1 else {}))
        sha = {"parameters_sha256": name}
        paths.append(write_run(tmp_path / name, FACTS | {"id": run}, RESULT | sha, events))
    found = diff.parameters(*map(diff.side, paths))
    assert found.same is False
    assert found.compared.count("step-000002") == 2
    assert [(each.name, each.first_key, each.maximum) for each in found.tables] == [("w", 7, 1.0)]
    stranger = write_checkpoint(tmp_path / "ck" / "c" / "step-000002", {7: 1.0}, 2, FACTS | {"id": "other"})
    write_run(paths[1], None, None, [{"event": "checkpoint", "step": 2, "folder": str(stranger)}])
    assert diff.parameters(*map(diff.side, paths)).compared == "parameters_sha256"  # that is another run's


def test_a_run_and_its_checkpoint_are_the_same(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "step-000004", {1: 1.0}, 4, FACTS)
    run = write_run(
        tmp_path / "run", FACTS, RESULT, [{"event": "checkpoint", "step": 4, "folder": str(path)}]
    )
    assert diff.parameters(diff.side(run), diff.side(path)).same is True
    other = write_checkpoint(tmp_path / "step-000005", {1: 1.0}, 5, FACTS)
    found = diff.parameters(diff.side(run), diff.side(other))
    assert found.same is None
    assert "no" in found.note


def test_a_model_that_one_side_lacks_is_named_though_the_hashes_are_the_same(tmp_path: Path) -> None:
    a, b = both(tmp_path, same_again(), RESULT)
    np.savez(a.path / "model.npz", keys=np.array([4], np.uint64), values=np.array([1.0]))
    assert diff.parameters(a, b).note == "not compared, as it is missing or no file: model.npz of B"
    os.mkfifo(b.path / "model.npz")
    found = diff.parameters(a, b)
    assert found.same is True and found.note.endswith("model.npz of B")


def test_models_of_the_same_name_are_compared(tmp_path: Path) -> None:
    a, b = both(tmp_path, same_again(), RESULT | {"parameters_sha256": "cd"})
    for side, value in ((a, 1.0), (b, 3.0)):
        np.savez(side.path / "model.npz", keys=np.array([4], np.uint64), values=np.array([value]))
    found = diff.parameters(a, b)
    assert found.compared == "model.npz"
    assert [(each.differing, each.first_key, each.maximum) for each in found.tables] == [(1, 4, 2.0)]


def test_checkpoints_without_provenance_are_compared_by_their_jobs(tmp_path: Path) -> None:
    old = write_checkpoint(tmp_path / "step-000001", {1: 1.0})
    a, b = diff.side(old), diff.side(write_checkpoint(tmp_path / "step-000002", {1: 1.0, 9: 0.0}, 2, FACTS))
    assert diff.provenance(a, b) == {"job": []}
    assert diff.parameters(a, b).same is True  # a row of zeros is as good as none
    text = "\n".join(report(diff.compare(a, b), Paint(False)))
    assert "A has no provenance" in text
    assert "step 1, no provenance" in text


# --- the command --------------------------------------------------------------------------------------


def test_differences_are_printed_as_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    job = FACTS["job"] | {"layout": {"servers": 1, "tau": 4}, "toy": {"rate": 0.25}}
    threads = {"OMP_NUM_THREADS": "1", "NUMBA_X": "close"}
    a, b = both(tmp_path, same_again(job=job, environment=threads), RESULT | {"metrics": {"objective": 8.0}})
    assert main(["diff", str(a.path), str(b.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:11] == [
        f"A  {a.path}  completed, run started 2026-01-02T03:04:05+00:00, 2 ranks on 1 host",
        f"B  {b.path}  completed, run started 2027-01-02T03:04:05+00:00, 2 ranks on 1 host",
        "",
        "provenance",
        "                           A    B",
        "  job          toy.rate    0.5  0.25",
        "               layout.tau  -    4",
        "  environment  NUMBA_X     -    close",
        "  same: command, source, versions, inputs, machine, layout, batch",
        "",
        "metrics",
    ]
    assert lines[11:14] == [
        "                A    B  B - A  relative",
        "  objective  10.0  8.0     -2   2.0e-01",
        "  passes        2    -",
    ]
    assert "  pass: 2; the same in all: objective, rate" in lines
    assert lines[-2:] == ["parameters: the same bits by parameters_sha256", "  sha256 ab"]


def test_colour_says_same_or_different(tmp_path: Path) -> None:
    a, b = both(tmp_path, same_again(), RESULT | {"parameters_sha256": "cd"})
    text = "\n".join(report(diff.compare(a, b), Paint(True)))
    assert "\033[31mDIFFERENT\033[0m" in text
    assert "\033[32m  objective" in text
    assert "\033" not in "\n".join(report(diff.compare(a, b), Paint(False)))


def test_long_lists_and_values_are_cut_unless_all_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = {"toy": {f"key{at:02d}": "v" * 200 for at in range(20)}}
    a, b = both(tmp_path, same_again(job=FACTS["job"] | job), RESULT)
    main(["diff", str(a.path), str(b.path)])
    short = capsys.readouterr().out
    assert "job: 9 more; --all shows them" in short
    assert max(map(len, short.splitlines())) < 160
    main(["diff", "--all", str(a.path), str(b.path)])
    assert "v" * 200 in capsys.readouterr().out


@pytest.mark.parametrize(
    ("result", "code"), [(RESULT, 0), (RESULT | {"parameters_sha256": "x"}, 1), ({"status": "failed"}, 1)]
)
def test_differences_are_printed_as_json_with_an_exit_code(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], result: dict[str, Any], code: int
) -> None:
    a, b = both(tmp_path, same_again(packages={"numpy": "3"}), result)
    assert main(["diff", "--json", str(a.path), str(b.path)]) == code
    said = json.loads(capsys.readouterr().out)
    assert said["same"] is (None if result == {"status": "failed"} else code == 0)
    assert said["provenance"]["versions"] == [{"key": "numpy", "a": "2.0", "b": "3"}]
    assert said["a"] == {
        "path": str(a.path),
        "kind": "run",
        "status": "completed",
        "started": FACTS["started"],
    }
    assert {each["name"] for each in said["metrics"]} >= {"objective", "passes"}


def test_bad_input_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good = write_run(tmp_path / "good", FACTS, RESULT)
    (tmp_path / "empty").mkdir()
    torn = write_run(tmp_path / "torn", FACTS)
    (torn / "result.json").write_text("{")
    wrong = {"none": "no such folder", "empty": "neither a run's folder nor a checkpoint", "torn": "damaged"}
    for path, text in wrong.items():
        assert main(["diff", str(good), str(tmp_path / path)]) == 2
        said = capsys.readouterr().err
        assert text in said
        assert said.count("\n") == 1

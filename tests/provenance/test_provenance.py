"""Provenance: the facts that determine a run, and no secrets."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy
import pytest

from mpips.checkpoint.manifest import MANIFEST, read_manifest, write_manifest
from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.view import first_view
from mpips.config.job_file import Job, load
from mpips.errors import InputError
from mpips.provenance import provenance, run_json
from mpips.rundir.folder import RunFolder, write_json


@dataclass(frozen=True)
class Settings:
    """A program with one key."""

    hash_seed: int = 5


@dataclass(frozen=True)
class Program:
    """What `load` needs of a program."""

    name: str = "toy"
    settings: type = Settings


def test_secrets_stay_out() -> None:
    environ = {
        "SLURM_JOB_ID": "7", "OMPI_COMM_WORLD_RANK": "0", "OMP_NUM_THREADS": "1", "MPIPS_PROGRESS": "plain",
        "SLURM_JWT": "x", "PMIX_SERVER_URI4": "x", "PMI_AUTH": "x", "MY_TOKEN": "x", "HOME": "x", "MPIPS_SECRET": "x",
    }  # fmt: skip
    assert list(provenance.relevant(environ)) == [
        "MPIPS_PROGRESS",
        "OMPI_COMM_WORLD_RANK",
        "OMP_NUM_THREADS",
        "SLURM_JOB_ID",
    ]


def test_versions_are_those_installed() -> None:
    assert provenance.versions(["numpy", "no-such-package"]) == {"numpy": numpy.__version__}


def job_at(folder: Path) -> Job:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.toml"
    path.write_text('[job]\nprogram = "toy"\nseed = 3\n')
    return load(path, (), lambda name, base: Program())


def test_run_json_names_job_and_ranks(tmp_path: Path) -> None:
    job, folder = job_at(tmp_path), RunFolder(tmp_path)
    ranks = [{"rank": 0, "role": "scheduler", "host": "n1", "pid": 42}]
    environ = {"OMP_NUM_THREADS": "1", "LOADEDMODULES": "gcc/13:openmpi/5", "SLURM_JOB_ID": "7"}
    known = provenance.collect(
        job, ["mpips", "job.toml"], environ, batch=lambda environ: {"job": environ["SLURM_JOB_ID"]}
    )
    run_json.write_run(folder, known, ranks, mpi="MPI X")
    written = json.loads(folder.run.read_text())
    assert written["ranks"] == ranks
    assert written["argv"] == ["mpips", "job.toml"]
    assert written["job_digest"] == job.digest()
    assert written["job"]["job"]["seed"] == 3
    assert written["seeds"] == {"job.seed": 3, "faults.seed": 0, "toy.hash_seed": 5}
    assert written["environment"] == {"OMP_NUM_THREADS": "1", "SLURM_JOB_ID": "7"}
    assert written["modules"] == [{"name": "gcc/13"}, {"name": "openmpi/5"}]
    assert written["batch"] == {"job": "7"}
    assert written["mpi"] == "MPI X"
    assert written["hdf5"].count(".") >= 1
    assert written["started"].endswith("+00:00")
    assert written["folder"] == str(tmp_path)
    assert provenance.collect(job).id != written["id"]


def test_modules_have_files_where_they_are_known() -> None:
    loaded = {"LOADEDMODULES": "gcc/13:mpi/5", "_LMFILES_": "/m/gcc/13.lua:/m/mpi/5.lua"}
    assert provenance.modules(loaded) == [
        {"name": "gcc/13", "file": "/m/gcc/13.lua"},
        {"name": "mpi/5", "file": "/m/mpi/5.lua"},
    ]
    assert provenance.modules({}) == []


def test_the_users_tree_is_known_too(tmp_path: Path) -> None:
    job = job_at(tmp_path / "mine")
    environ = {**os.environ, "GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True, env=environ)
    known = provenance.collect(job, queries=provenance.start_queries(job.base))
    assert known.repository is not None
    assert known.repository["path"] == str(tmp_path)
    assert known.repository["dirty"] is False
    elsewhere = provenance.collect(job, queries=provenance.start_queries(tmp_path / "other"))
    assert elsewhere.repository == known.repository  # the job's base counts, wherever its file is
    assert provenance.collect(job, children=False).repository is None


def test_the_program_is_known_by_its_contents(tmp_path: Path) -> None:
    known = provenance.collect(job_at(tmp_path), module=__name__)
    assert known.program["file"] == sys.modules[__name__].__file__
    assert len(known.program["sha256"]) == 64


def test_servers_key_ranges_cover_all_keys() -> None:
    layout = Layout.of(6, LayoutSpec(servers=3, workers={"a": 1, "b": 1}))
    processes = [(100 + rank, f"n{rank // 2}") for rank in range(6)]
    ranks = run_json.rank_facts(layout, processes, first_view(layout))
    assert [each["role"] for each in ranks] == ["scheduler", *["server"] * 3, *["worker"] * 2]
    assert [each["host"] for each in ranks] == ["n0", "n0", "n1", "n1", "n2", "n2"]
    assert [each.get("group") for each in ranks[-2:]] == ["a", "b"]
    parts = sorted(tuple(map(int, part.split(":"))) for each in ranks for part in each.get("ranges", []))
    assert parts[0][0] == 0
    assert parts[-1][1] == 2**64
    assert all(before[1] == after[0] for before, after in pairwise(parts))
    assert [bool(each.get("ranges")) for each in ranks] == [False, True, True, True, False, False]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    run_json.write_run(folder, provenance.collect(job_at(tmp_path)), [], mpi="MPI X", ancestry=[])
    return folder


def checkpoint(folder: Path, facts: dict[str, Any] | None, step: int = 3) -> Path:
    folder.mkdir(parents=True)
    write_manifest(folder, [], {"step": step}, facts)
    return folder


@pytest.mark.parametrize(
    ("result", "exit"),
    [
        ({"status": "completed", "exit_code": 0}, {"status": "completed", "code": 0, "reason": "the program ended"}),
        ({"status": "stopped", "exit_code": 85, "stopped_by": "SIGTERM"},
         {"status": "stopped", "code": 85, "reason": "SIGTERM"}),
        ({"status": "failed", "exit_code": 1, "error": "rank 2: no", "failed_rank": "rank 2"},
         {"status": "failed", "code": 1, "reason": "rank 2: no", "failed_rank": "rank 2"}),
    ],
)  # fmt: skip
def test_the_reason_of_the_end_is_recorded(
    run: RunFolder, result: dict[str, Any], exit: dict[str, Any]
) -> None:
    run_json.conclude(run, result)
    written = run_json.read_run(run)
    assert written is not None
    assert written["exit"] == exit
    assert written["ended"].endswith("+00:00")
    assert ("outputs" in written) == (result["status"] != "failed")


def test_the_end_lists_outputs_and_checkpoints(run: RunFolder, tmp_path: Path) -> None:
    (run.path / "model.npz").write_bytes(b"x")
    mine = run_json.read_run(run)
    assert mine is not None
    path = checkpoint(tmp_path / "ck" / "step-000003", mine)
    checkpoint(tmp_path / "ck" / "step-000006", mine | {"id": "of another run"})
    checkpoint(tmp_path / "ck" / "step-000009", None)
    run_json.conclude(run, {"status": "completed", "parameters_sha256": "ab"}, tmp_path / "ck")
    written = run_json.read_run(run)
    assert written is not None
    outputs = written["outputs"]
    assert [each["name"] for each in outputs["files"]] == ["model.npz"]
    assert outputs["parameters_sha256"] == "ab"
    sha = read_manifest(path)["sha256"]
    assert outputs["checkpoints"] == [{"folder": str(path), "step": 3, "manifest_sha256": sha}]


def test_the_first_recorded_end_is_kept(run: RunFolder) -> None:
    run_json.conclude(run, {"status": "failed", "error": "rank 1 died"})
    run_json.conclude(run, {"status": "failed", "error": "no result"})
    written = run_json.read_run(run)
    assert written is not None
    assert written["exit"]["reason"] == "rank 1 died"


def test_provenance_that_cannot_be_written_raises_no_error(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    run_json.amend(folder, inputs=[])
    run_json.conclude(folder, {"status": "completed"})
    folder.run.write_text("{torn")
    run_json.conclude(folder, {"status": "completed"})
    assert folder.run.read_text() == "{torn"


def test_checkpoints_carry_their_ancestors(run: RunFolder, tmp_path: Path) -> None:
    first = run_json.read_run(run)
    assert first is not None
    assert run_json.ancestry(checkpoint(tmp_path / "step-000001", None, 1)) == [
        {
            "checkpoint": str(tmp_path / "step-000001"),
            "step": 1,
            "manifest_sha256": read_manifest(tmp_path / "step-000001")["sha256"],
        }
    ]
    (one,) = run_json.ancestry(checkpoint(tmp_path / "step-000002", first, 2))
    assert one["id"] == first["id"]
    assert one["job_digest"] == first["job_digest"]
    again = first | {"id": "second", "ancestry": [one]}
    found = run_json.ancestry(checkpoint(tmp_path / "step-000003", again, 3))
    assert [each["id"] for each in found] == [first["id"], "second"]
    assert found[0] == one


def test_a_damaged_checkpoint_has_no_ancestors(tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_text("{}")
    assert run_json.ancestry(tmp_path) == []


def test_the_summary_reports_where_a_run_came_from(run: RunFolder) -> None:
    ranks = [{"rank": rank, "host": f"n{rank}"} for rank in range(5)]
    facts = run_json.read_run(run)
    assert facts is not None
    inputs = [{"role": "train", "path": "/d/x.svm", "bytes": 1234, "sample_sha256": "ab"}]
    facts |= {"ranks": ranks, "inputs": inputs, "ancestry": [{"checkpoint": "/c/step-000003"}]}
    lines = "\n".join(
        run_json.summary(facts | {"source": {"commit": "c0ffee", "dirty": True, "diff_sha256": "dd"}})
    )
    for part in ("5 on n0, n1, n2 and 2 more", "commit c0ffee, changed: diff sha256 dd", "resumed from: /c/step-000003",
                 "train: /d/x.svm, 1,234 bytes, sample_sha256 ab", str(run.path)):  # fmt: skip
        assert part in lines
    assert run_json.summary({})  # of an earlier version


@pytest.mark.parametrize(
    ("state", "line"),
    [
        ({"commit": "c", "dirty": False, "diff_sha256": None}, "commit c"),
        ({"commit": "c", "dirty": None, "diff_sha256": None}, "commit c, perhaps changed"),
        ({"record_sha256": "r"}, "installed, files' sha256 r"),
    ],
)
def test_a_state_is_a_line(state: dict[str, Any], line: str) -> None:
    assert run_json.state_line(state) == line


def test_resuming_in_the_same_folder_keeps_the_former_provenance(run: RunFolder) -> None:
    write_json(run.result, {"status": "stopped"})
    former = run.run.read_text()
    RunFolder.claim(run.path, resume=True)
    assert (run.path / "run.previous.json").read_text() == former


@pytest.mark.parametrize("status", ["completed", "stopped", "failed", None])
def test_a_run_that_ended_in_order_is_not_replaced_by_another(
    run: RunFolder, tmp_path: Path, status: str | None
) -> None:
    facts = run_json.read_run(run)
    assert facts is not None
    own, before, other = (
        str(checkpoint(tmp_path / "ck" / f"step-00000{step}", facts | {"id": whose}))
        for step, whose in enumerate((facts["id"], "its ancestor", "of another run"), 1)
    )
    anonymous = str(checkpoint(tmp_path / "ck" / "step-000004", None))
    more: dict[str, Any] = {} if status is None else {"exit": {"status": status}}
    ancestry = [{"checkpoint": before, "id": "its ancestor"}]
    write_json(run.run, facts | {"job": {"job": {"program": "lda"}}, "ancestry": ancestry, **more})
    for resume in ("latest", own, before, anonymous):
        run_json.check_continues(run, "lda", resume)
    if status not in ("completed", "stopped"):
        run_json.check_continues(run, "sketch", other)
        return
    with pytest.raises(
        InputError, match="holds a run of program 'lda', not 'sketch'; name another --run-dir"
    ):
        run_json.check_continues(run, "sketch", "latest")
    with pytest.raises(InputError, match=f"holds another run than the one that wrote {other}; name another"):
        run_json.check_continues(run, "lda", other)
    write_json(run.run, facts | {"exit": {"status": "stopped", "before_training": True}})
    run_json.check_continues(run, "lda", other)


OUTPUTS = ("model.npz", "top.*")


@pytest.mark.parametrize("name", ["model.npz", "top.tsv"])
@pytest.mark.parametrize("link", [False, True])
def test_a_file_that_no_run_has_written_is_not_replaced(tmp_path: Path, name: str, link: bool) -> None:
    path = tmp_path / name
    path.symlink_to(tmp_path / "nowhere") if link else path.write_text("mine")
    with pytest.raises(InputError, match=rf"{name}: no run has written it, and this one would replace it"):
        run_json.check_outputs_are_own(RunFolder(tmp_path), OUTPUTS)
    run_json.check_outputs_are_own(RunFolder(tmp_path), ("model.h5",))


def test_the_inputs_of_a_run_are_not_taken_for_its_outputs(tmp_path: Path) -> None:
    run_json.check_outputs_are_own(RunFolder(tmp_path / "new"), ("model.*",))
    (tmp_path / "model.toml").write_text("")
    (tmp_path / "model.py").write_text("")
    run_json.check_outputs_are_own(RunFolder(tmp_path), ("model.*",))


def test_a_run_that_is_continued_replaces_its_own_files_but_no_others(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    known = provenance.collect(job_at(tmp_path / "job"), ["mpips"], {})
    model = tmp_path / "model.npz"
    model.write_text("its own")
    run_json.write_run(folder, known, [])
    run_json.check_outputs_are_own(folder, OUTPUTS)  # it was killed, and has listed none
    run_json.conclude(folder, {"status": "completed"})
    run_json.check_outputs_are_own(folder, OUTPUTS)
    (tmp_path / "top.tsv").write_text("mine")
    with pytest.raises(
        InputError, match=r"top\.tsv: is not what the run has written; the run would replace it"
    ):
        run_json.check_outputs_are_own(folder, OUTPUTS)
    (tmp_path / "top.tsv").unlink()
    model.write_text("another")
    with pytest.raises(
        InputError, match=r"model\.npz: is not what the run has written.*would replace it: move"
    ):
        run_json.check_outputs_are_own(folder, OUTPUTS)


def test_files_that_an_earlier_start_has_left_are_replaced(tmp_path: Path) -> None:
    """As in the batch script, which moves run.json and others before it starts a failed run again."""
    (tmp_path / "model.npz").write_text("its own")
    (tmp_path / "job.toml").write_text('[job]\nprogram = "toy"\nname = "a"\nseed = 0\nbase = "/"\n')
    run_json.check_outputs_are_own(RunFolder(tmp_path), OUTPUTS)

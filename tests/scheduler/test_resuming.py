"""Runs that resume: the user is told how their data differ from those of the checkpoint."""

from __future__ import annotations

import os
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from synthetic import Hooks, job_of, run_twin

from mpips.checkpoint.manifest import complete
from mpips.errors import CheckpointError, UsageError
from mpips.scheduler.resuming import (
    changed_files,
    changed_job,
    changed_program,
    changed_reading,
    check,
    kept_fields,
)
from mpips.storage.initial import Uniform
from mpips.storage.updates import VectorSpec


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({}, ""),
        ({"b.tsv": "longer"}, "b.tsv of 6 bytes, was b.tsv of 2 bytes"),
        ({"c.tsv": "new"}, "c.tsv of 3 bytes, was none"),
        ({"b.tsv": None}, "none, was b.tsv of 2 bytes"),
        ({"a.tsv": None, "b.tsv": None}, ""),
    ],
)
def test_training_files_that_differ_are_named(tmp_path: Path, changed: dict[str, Any], found: str) -> None:
    inputs = [
        {"role": "train", "path": "/was/elsewhere/a.tsv", "bytes": 1},
        {"role": "train", "path": "/was/elsewhere/b.tsv", "bytes": 2},
        {"role": "test", "path": "/was/elsewhere/c.tsv", "bytes": 9},
    ]
    for name, text in ({"a.tsv": "1", "b.tsv": "22"} | changed).items():
        if text is not None:
            (tmp_path / name).write_text(text)
    job = job_of(tmp_path, {"job": {"program": "sketch"}, "data": {"train": "*.tsv"}})
    assert changed_files(inputs, job) == ([f"[data] train: {found}"] if found else [])
    assert changed_files([{"role": "train"}], job) == [] and changed_files([], job) == []


@pytest.mark.parametrize("large", [False, True])
def test_a_file_of_the_same_name_and_size_with_another_content_is_named(tmp_path: Path, large: bool) -> None:
    path, text = tmp_path / "a.tsv", b"+1 1:1\n"
    path.write_bytes(text)
    known = (
        {"sample_sha256": sha256(len(text).to_bytes(8, "little") + text + text)}
        if large
        else {"sha256": sha256(text)}
    )
    fact = {"role": "train", "path": "/was/a.tsv", "bytes": 7, "modified": "2026-01-01"}
    fact |= {name: found.hexdigest() for name, found in known.items()}
    job = job_of(tmp_path, {"job": {"program": "sketch"}, "data": {"train": "*.tsv"}})
    assert changed_files([fact], job) == []
    path.write_bytes(b"-1 1:1\n")
    turns: list[bool] = []
    assert changed_files([fact], job, lambda: turns.append(True)) == [
        "[data] train: a.tsv has another content"
    ]
    assert large or turns
    # It was not hashed as a whole while it was the same.
    assert changed_files([fact | {"changed": True}], job) == []
    os.truncate(path, 0)
    assert changed_files([fact], job) == ["[data] train: a.tsv of 0 bytes, was a.tsv of 7 bytes"]


def test_other_settings_that_decide_the_result_are_compared(tmp_path: Path) -> None:
    tables: dict[str, Any] = {
        "job": {"program": "sketch", "seed": 1},
        "layout": {"servers": 2, "workers": 2},
    }
    before = {"job": job_of(tmp_path, tables).tables()}
    assert changed_job({}, job_of(tmp_path, tables)) == changed_job(before, job_of(tmp_path, tables)) == []
    tables["job"]["seed"] = 2
    tables["layout"] |= {"servers": 1}
    before["job"]["layout"]["exact_sums"] = True
    tables |= {"consistency": {"tau": 4}, "filters": {"push": [{"name": "random_skip", "keep": 0.5}]}}
    seed, sums, tau, push = changed_job(before, job_of(tmp_path, tables))
    assert seed == "[job] seed = 2, was 1"
    assert sums == "[layout] exact_sums = false, was true"
    assert tau == "[consistency] tau = 4, was 0"
    assert push.startswith("[filters] push = [") and "random_skip" in push and ", was [" in push
    del before["job"]["consistency"]
    assert len(changed_job(before, job_of(tmp_path, tables))) == 3


def test_a_program_of_a_users_own_that_was_changed_is_named(tmp_path: Path) -> None:
    program = tmp_path / "own.py"
    program.write_text(OWN)
    job = job_of(tmp_path, {"job": {"program": "own.py"}})
    known = {"program": {"file": "/was/own.py", "sha256": sha256(OWN.encode()).hexdigest()}}
    assert changed_program(known, job) == changed_program({}, job) == []
    program.write_text(OWN + "# changed\n")
    assert changed_program(known, job) == ["[job] program: own.py has another content"]
    assert changed_program(known, job_of(tmp_path, {"job": {"program": "sketch"}})) == []


OWN = """
from dataclasses import dataclass
@dataclass(frozen=True)
class Settings:
    pass
def schedule(cluster): pass
class Worker: pass
"""


def test_settings_by_which_data_are_read_are_compared_with_the_defaults_of_their_time(tmp_path: Path) -> None:
    """A checkpoint of an earlier version lacks the settings that are new since then: it was written by the defaults."""
    data = {"train": "b.tsv", "separator": ",", "key_bits": 128}
    job = job_of(tmp_path, {"job": {"program": "sparse_lr"}, "data": data})
    separator = '[data] separator = ",", was "\\t"'
    bits = "[data] key_bits = 128, was 64"
    assert changed_reading({}, job) == {"separator": separator, "key_bits": bits}
    assert changed_reading({"job": {"data": {"train": "a.tsv", "separator": ","}}}, job) == {"key_bits": bits}
    assert changed_reading({"job": {"data": data}}, job) == {}


def test_a_fact_that_depends_on_the_files_is_named_with_them(tmp_path: Path) -> None:
    """The l1 of sgd is one for each example: with other files it differs though the job's is the same."""
    job = job_of(tmp_path, {"job": {"program": "sparse_lr"}, "sparse_lr": {"algorithm": "sgd"}})
    about = {
        "program": "sparse_lr",
        "facts": {"l1": 0.1},
        "other files": ["[data] train: b of 8 bytes, was a of 9"],
    }
    with pytest.raises(CheckpointError) as found:
        check(tmp_path, about, job, {"l1": 0.2})
    assert str(found.value) == (
        f"checkpoint {tmp_path} was written with l1 = 0.1, not 0.2; [data] train: b of 8 bytes, was a of 9: set it as "
        "it was, or start a new run"
    )


def test_what_a_restored_vector_keeps_is_said() -> None:
    was = VectorSpec("w", update="sgd", settings={"rate": 0.1}, init=Uniform(-1.0, 1.0, seed=1))
    assert kept_fields(was, was, "c") == []
    assert kept_fields(was, VectorSpec("w", update="sgd", init=was.init), "c") == []
    now = VectorSpec("w", update="sgd", settings={"rate": 0.2, "l1": 0.0}, init=0.5)
    rate, init = kept_fields(was, now, "c")
    assert rate == "vector 'w' keeps rate = 0.1 of the checkpoint, not 0.2"
    assert init.startswith("vector 'w' keeps init = {") and init.endswith(" of the checkpoint, not 0.5")
    with pytest.raises(
        CheckpointError, match="checkpoint c: vector 'w' has width 1, and the program wants 2"
    ):
        kept_fields(was, VectorSpec("w", update="sgd", width=2), "c")


PROGRAM = """
from dataclasses import dataclass
import numpy as np
from mpips import VectorSpec

@dataclass(frozen=True)
class Settings:
    steps: int = 2
    twice: bool = False

def schedule(cluster, settings):
    state = cluster.restore() or {"step": 0}
    w = cluster.vector(VectorSpec("w"))
    if settings.twice:
        cluster.vector(VectorSpec("w"))
    more = cluster.vector(VectorSpec("later" if state["step"] else "first"))
    for step in range(state["step"], settings.steps):
        w.push(np.array([3], np.uint64), np.ones(1)).result()
        if cluster.due(step + 1):
            cluster.checkpoint(step + 1, {"step": step + 1})
    return {"w": w.pull(np.array([3], np.uint64)).result().tolist(), "vectors": sorted(cluster.vectors)}

class Worker:
    def __init__(self, context):
        pass
"""


def test_a_program_need_not_tell_a_new_vector_from_a_restored_one(tmp_path: Path) -> None:
    program, saved = tmp_path / "counting.py", tmp_path / "saved"
    program.write_text(PROGRAM)

    def run(resume: Path | None = None, **settings: Any) -> dict[str, Any]:
        hooks = Hooks(checkpoints=saved, resume=resume)
        tables: dict[str, Any] = {"settings": settings, "checkpoint": {"every": 1, "keep": 9}, "hooks": hooks}
        return run_twin(program, program=str(program), **tables).metrics

    assert run() == {"w": [2.0], "vectors": ["first", "w"]}
    assert run(complete(saved)[0], steps=4) == {"w": [4.0], "vectors": ["first", "later", "w"]}
    with pytest.raises(UsageError, match="vector 'w' exists already"):
        run(complete(saved)[0], twice=True)

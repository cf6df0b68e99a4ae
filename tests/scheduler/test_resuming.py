"""Runs that resume: the user is told how their data differ from those of the checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from synthetic import job_of

from mpips.errors import CheckpointError
from mpips.scheduler.resuming import changed_files, changed_reading, check


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
        {"role": "train", "path": "/was/elsewhere/b.tsv", "bytes": 2, "sha256": "00"},
        {"role": "test", "path": "/was/elsewhere/c.tsv", "bytes": 9},
    ]
    for name, text in ({"a.tsv": "1", "b.tsv": "22"} | changed).items():
        if text is not None:
            (tmp_path / name).write_text(text)
    job = job_of(tmp_path, {"job": {"program": "sketch"}, "data": {"train": "*.tsv"}})
    assert changed_files(inputs, job) == ([f"[data] train: {found}"] if found else [])
    assert changed_files([{"role": "train"}], job) == [] and changed_files([], job) == []


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

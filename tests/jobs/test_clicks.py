"""Files of clicks, which ctr reads: whatever they hold, one line says what is wrong."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpips import DataError, InputError, JobError
from mpips.jobs.ctr import trained
from mpips.jobs.ctr.clicks import crc, generated, load
from mpips.jobs.ctr.job import check_alike, check_loss, rows_spec, unfit

WHOLE = {"ids": np.ones((4, 2), int), "numbers": np.ones((4, 1)), "labels": np.array([0, 1, 1, 0])}


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("numbers", np.full((4, 1), 1j), "its numbers are complex128"),
        ("numbers", np.float32(1), r"numbers \(\) and labels"),
        ("numbers", np.full((4, 1), 1e39), "numbers finite"),
        ("labels", np.array([[0, 1], [0, 1]]), r"labels \(2, 2\) are not of the same clicks"),
        ("labels", np.array([0, 1e-60, 1, 1]), "labels must be 0 or 1"),
        ("labels", np.array(["0", "1", "1", "0"]), "its labels <U1"),
    ],
)
def test_arrays_that_are_no_clicks(tmp_path: Path, name: str, value: Any, text: str) -> None:
    np.savez(tmp_path / "a.npz", **{**WHOLE, name: value})
    with pytest.raises(DataError, match=text):
        load(tmp_path / "a.npz")


def _of_member(header: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("ids.npy", header)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 no archive",
        _of_member(
            b"\x93NUMPY\x01\x00F\x00{'descr': '<i8', 'fortran_order': False, 'shape': (9000000000000, 1)}\n"
        ),
        _of_member(b"\x93NUMPY\x01\x00\x03\x00((\n"),
    ],
)  # fmt: skip
def test_damaged_archives(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.npz"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: not a file of clicks"):
        load(path)


def test_an_archive_without_an_array(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=WHOLE["ids"], numbers=WHOLE["numbers"])
    with pytest.raises(DataError, match="it has no array 'labels'"):
        load(tmp_path / "a.npz")


def test_workers_with_other_clicks_and_losses_that_grow_end_a_run() -> None:
    clicks, others = generated(50, 1), generated(50, 2)
    mine = {"data": crc(clicks), "digest": "7ba3895f"}
    check_alike([mine, {**mine, "data": crc(generated(50, 1))}])
    with pytest.raises(InputError, match="the workers have read different clicks"):
        check_alike([mine, {**mine, "data": crc(clicks._replace(labels=others.labels))}])
    with pytest.raises(JobError, match="they need the same version of PyTorch"):
        check_alike([mine, {**mine, "digest": "00000000"}])
    check_loss(0.7, True, last=True)
    for loss, scored, last in ((math.nan, True, False), (0.5, False, False), (9.0, True, True)):
        with pytest.raises(InputError, match="training diverged: "):
            check_loss(loss, scored, last)


def test_a_run_continues_with_the_layers_it_had_begun_with() -> None:
    state = {
        "pass": 1, "rounds": 3, "clicks": 50, "curve": [{"loss": 0.7, "auc": None}], "layers": "7ba3895f",
    }  # fmt: skip
    assert unfit("7ba3895f", {"state": state}) == ""
    for layers, changed, text in (
        ("00000000", {}, "set [ctr] seed, width and hidden as they were"),
        ("7ba3895f", {"curve": []}, "about.state.curve is of 0 passes"),
        ("7ba3895f", {"rounds": -1}, "about.state.rounds is an integer out of bounds"),
    ):
        assert text in unfit(layers, {"state": state | changed})


@pytest.mark.parametrize(
    "changed",
    [
        {"shape": np.array([4, 8, 10**9])},
        {"shape": np.array([4, 10**6, 64])},
        {"shape": np.array([-1, 8, 64])},
        {"shape": np.array([4.0, 8.0, 64.0])},
        {"shape": np.array(["4", "8", "64"])},
        {"seed": np.array([1, 2])},
        {"seed": np.array("x")},
    ],
)
def test_a_small_file_does_not_make_a_large_network(tmp_path: Path, changed: dict[str, Any]) -> None:
    whole = {
        "keys": np.zeros(0, np.uint64), "rows": np.zeros((0, 16), np.float32), "layers": np.zeros(9, np.float32),
        "shape": np.array([4, 8, 64]), "seed": np.array(0), "program": np.array("ctr"),
    }  # fmt: skip
    np.savez(tmp_path / "model.npz", **whole | changed)
    with pytest.raises(InputError, match=r"is (damaged: it has 9 parameters|not a model of ctr)"):
        trained.load(tmp_path / "model.npz", {}, rows_spec)

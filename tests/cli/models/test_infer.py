"""`mpips infer` of model files that do not name a program."""

from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from mpips.cli.main import main


@pytest.mark.parametrize("kind", [h5py.h5t.UNIX_D32LE, h5py.h5t.STD_B8LE, h5py.h5t.STD_REF_OBJ])
def test_a_program_name_of_another_type_is_reported(
    tmp_path: Path, kind: h5py.h5t.TypeID, capsys: pytest.CaptureFixture[str]
) -> None:
    with h5py.File(tmp_path / "model.h5", "w") as file:
        h5py.h5a.create(file.id, b"program", kind, h5py.h5s.create(h5py.h5s.SCALAR))
    assert main(["infer", str(tmp_path / "model.h5")]) == 2
    assert capsys.readouterr().err.startswith("mpips: error: ")

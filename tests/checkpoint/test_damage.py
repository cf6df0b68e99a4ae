"""Any damage of a checkpoint is detected, and the damaged file is named."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import pytest
from checkpoint.test_checkpoint import write
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mpips.checkpoint.inspection import verify
from mpips.checkpoint.loading import load_range, load_worker
from mpips.checkpoint.manifest import _own_hash, latest
from mpips.errors import CheckpointError
from mpips.ranges import ALL


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound"), 120)


@given(st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_flipped_bit_is_found_and_the_file_named(sound: Path, tmp_path: Path, data: Any) -> None:
    copy = tmp_path / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(sound, copy)
    path = copy / data.draw(st.sampled_from(sorted(path.name for path in sound.iterdir())))
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(content)
    problems = verify(copy)
    assert problems
    assert all(path.name in problem and "\n" not in problem for problem in problems)


def test_a_file_larger_than_the_manifest_says_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    os.truncate(folder / "server-0001.h5", 1 << 40)
    (problem,) = verify(folder)
    assert "server-0001.h5: 1099511627776 bytes, the manifest says" in problem


def test_missing_and_cut_files_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path, 1)
    (folder / "server-0001.h5").unlink()
    cut_short = folder / "worker-0000.h5"
    cut_short.write_bytes(cut_short.read_bytes()[:-1])
    problems = verify(folder)
    assert len(problems) == 2
    assert "server-0001.h5: No such file" in problems[0]
    assert "worker-0000.h5" in problems[1]
    assert latest(tmp_path) is None
    with pytest.raises(CheckpointError, match=r"cannot read .*server-0001\.h5"):
        load_range(folder, "w", [ALL])
    with pytest.raises(CheckpointError, match=r"cannot read .*worker-0009\.h5"):
        load_worker(folder, 9)


def test_exchanged_shards_are_named(tmp_path: Path) -> None:
    folder = write(tmp_path / "a", 1)
    one, two, aside = (folder / name for name in ("server-0000.h5", "server-0001.h5", "aside"))
    one.rename(aside), two.rename(one), aside.rename(two)
    problems = verify(folder)
    assert len(problems) == 2
    assert "server-0000.h5" in problems[0] and "server-0001.h5" in problems[1]
    other = write(tmp_path / "b", 1, layout=3)
    shutil.copy(other / "server-0001.h5", two)
    assert any("server-0001.h5" in problem for problem in verify(folder))


@pytest.mark.parametrize("hashed", [False, True], ids=["as it is", "with a new hash"])
def test_a_manifest_that_was_tampered_with_is_found(tmp_path: Path, hashed: bool) -> None:
    """Also by somebody who writes the right hash: it still has to agree with the files and with itself."""

    def tampered(change: Callable[[dict[str, Any]], Any]) -> list[str]:
        manifest = json.loads((folder / "manifest.json").read_text())
        change(manifest)
        if hashed:
            manifest["sha256"] = _own_hash(manifest)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return verify(folder)

    folder = write(tmp_path, 1)
    text = (folder / "manifest.json").read_text()

    def part(manifest: dict[str, Any]) -> Any:
        return next(e for e in manifest["files"] if e["name"] == "server-0001.h5")["vectors"]["w"]

    changes: list[Callable[[dict[str, Any]], Any]] = [
        lambda m: m["files"].pop(1),
        lambda m: m["files"][0].update(bytes=7),
        lambda m: m["files"][1].update(sha256="0" * 64),
        lambda m: m["files"][1].pop("sha256"),
        lambda m: m.update(files=[*m["files"], 7]),
        lambda m: part(m).update(rows=part(m)["rows"] - 1),
        lambda m: part(m)["ranges"][0].__setitem__(3, part(m)["ranges"][0][3] + 1),
        lambda m: part(m)["spec"].update(width=2),
    ]
    for change in changes:
        (folder / "manifest.json").write_text(text)
        assert verify(folder) == []
        problems = tampered(change)
        assert problems and all(str(folder) in problem and "\n" not in problem for problem in problems)
    if not hashed:
        (folder / "manifest.json").write_text(
            text.replace('"step": 120', '"step":  120').replace(": 1,", ":  1,")
        )
        assert verify(folder) == [f"{folder}/manifest.json: damaged: its text is not as mpips writes it"]


def test_a_damaged_chunk_is_not_read(tmp_path: Path) -> None:
    folder = write(tmp_path, 1, layout=1)
    path = folder / "server-0000.h5"
    with h5py.File(path) as file:
        at = file["vectors/w/values"].id.get_chunk_info(0).byte_offset
    content = bytearray(path.read_bytes())
    content[at + 3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"cannot read .*server-0000\.h5") as caught:
        load_range(folder, "w", [ALL])
    assert "\n" not in str(caught.value)

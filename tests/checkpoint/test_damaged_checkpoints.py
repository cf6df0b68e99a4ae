"""Forged manifests with a correct hash: the error is one line, and nothing else is read."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import pytest
from checkpoint.test_checkpoint import write
from hostile.test_damaged_runs import changed, judge, places, some

from mpips.checkpoint.inspection import verify
from mpips.checkpoint.loading import load_clocks
from mpips.checkpoint.manifest import _own_hash, entry_of, latest, read_manifest, text_of
from mpips.errors import CheckpointError

COMMANDS = (
    ("verify", "bad"),
    ("inspect", "bad"),
    ("export", "bad", "--vector", "w", "--out", "w.tsv"),
    ("diff", "bad", "step-000120"),
)


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("sound"), 120)


@pytest.fixture
def bad(sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, one_parser: None) -> Path:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(sound, tmp_path / sound.name)
    shutil.copytree(sound, tmp_path / "bad")
    return tmp_path / "bad"


def rewrite(folder: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest with its right hash, as anyone can."""
    manifest = {key: value for key, value in manifest.items() if key != "sha256"}
    (folder / "manifest.json").write_text(text_of({**manifest, "sha256": _own_hash(manifest)}))


@pytest.mark.drawn(2)
@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0])
def test_commands_survive_any_value_in_any_place_of_a_manifest(
    bad: Path, command: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    good = read_manifest(bad)
    for number, at in enumerate(places(good)):
        for new in some(number):
            manifest = changed(good, at, new)
            if isinstance(manifest, dict) and isinstance(manifest.get("files"), list):
                rewrite(bad, manifest)
                judge(command, capsys, (at, new if new != 10**400 else "10**400"))


@pytest.mark.parametrize(
    "name",
    ["/dev/zero", "../step-000120/server-0000.h5", "", ".", "..", "a\0b", "fifo", "link", "folder", "none"],
)
def test_only_regular_files_of_the_folder_are_read(bad: Path, name: str) -> None:
    os.mkfifo(bad / "fifo")
    (bad / "link").symlink_to("/dev/zero")
    (bad / "folder").mkdir()
    manifest = read_manifest(bad)
    manifest["files"][0]["name"] = name
    rewrite(bad, manifest)
    problems = verify(bad)
    assert problems and not any("\n" in each for each in problems)
    assert latest(bad.parent) == bad.parent / "step-000120"
    bad.rename(bad.parent / "step-000999")
    assert latest(bad.parent) == bad.parent / "step-000120"


@pytest.mark.parametrize("kind", ["fifo", "link", "device", "huge", "deep"])
def test_a_manifest_that_is_no_json_file_is_refused(
    bad: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = bad / "manifest.json"
    path.rename(bad / "elsewhere")
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(1 << 40)
    elif kind == "deep":
        path.write_text("[" * 200_000)
    else:
        path.symlink_to({"link": bad / "elsewhere", "device": "/dev/zero"}[kind])
    with pytest.raises(CheckpointError, match=r"bad"):
        read_manifest(bad)
    for command in COMMANDS:
        judge(command, capsys, kind)


def test_a_view_shows_the_shards_beside_it_and_nothing_else(bad: Path, tmp_path: Path) -> None:
    assert verify(bad) == []
    secret = tmp_path / "secret.h5"
    with h5py.File(secret, "w") as file:
        file["keys"] = [1, 2, 3]
    layout = h5py.VirtualLayout((3,), "i8")
    layout[:] = h5py.VirtualSource(str(secret), "keys", (3,))
    for name in ("parameters.h5", "server-0000.h5"):
        with h5py.File(bad / name, "a") as file:
            file.create_virtual_dataset("more", layout)
        manifest = read_manifest(bad)
        entry = next(each for each in manifest["files"] if each["name"] == name)
        from mpips.checkpoint.manifest import entry_of

        entry |= entry_of(bad / name, entry["kind"], entry["number"])
        rewrite(bad, manifest)
    problems = verify(bad)
    assert len(problems) == 2 and all("virtual dataset" in each for each in problems), json.dumps(problems)


def test_data_of_a_view_that_shows_a_pipe_are_not_read(bad: Path) -> None:
    """HDF5 would wait for it forever."""
    manifest = read_manifest(bad)
    shard, view = (next(e for e in manifest["files"] if e["kind"] == kind) for kind in ("server", "view"))
    (name, part), *_ = shard["vectors"].items()
    with h5py.File(bad / view["name"], "r+") as file:
        layout = h5py.VirtualLayout((part["rows"],), "u8")
        layout[:] = h5py.VirtualSource(shard["name"], f"vectors/{name}/keys", (part["rows"],))
        file.create_virtual_dataset(f"vectors/{name}/keys", layout)
    (bad / shard["name"]).unlink()
    os.mkfifo(bad / shard["name"])
    first = {**view, **entry_of(bad / view["name"], "view", 0), "vectors": {name: part}}
    rewrite(bad, {**manifest, "files": [first, *(e for e in manifest["files"] if e is not view)]})
    done = subprocess.run(
        [sys.executable, "-m", "mpips.cli", "verify", str(bad)],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.returncode == 1 and f"{shard['name']}: is a named pipe" in done.stdout + done.stderr


def test_a_shard_that_unpacks_to_more_than_it_is_is_refused(bad: Path) -> None:
    manifest = read_manifest(bad)
    shard = next(e for e in manifest["files"] if e["kind"] == "server")
    with h5py.File(bad / shard["name"], "r+") as file:
        for name in "ab":  # each alone would do
            data = file.create_dataset(name, (6_000_000,), "u8", chunks=(1 << 20,), compression="gzip")
            data[:] = 0
    found = entry_of(bad / shard["name"], "server", shard["number"])
    rewrite(bad, {**manifest, "files": [{**e, **found} if e is shard else e for e in manifest["files"]]})
    assert [problem for problem in verify(bad) if "'b' and those before it declare 96," in problem]


@pytest.mark.parametrize(
    "meta",
    [
        [1], {"clocks": None}, {"clocks": [1]}, {"clocks": {"w": True}}, {"clocks": {"w": [[0]]}},
        {"clocks": {"w": [[0], [0], [-1], [1]]}}, {"clocks": {"w": [[0], [2], [1], [1]]}},
        {"clocks": {"w": [["x"], [0], [1], [1]]}}, {"clocks": {"w": [[0], [0], [None], [2**64]]}},
    ],
)  # fmt: skip
def test_invalid_clocks_are_refused_in_a_line(bad: Path, meta: object) -> None:
    shard = next(e for e in read_manifest(bad)["files"] if e["kind"] == "server")
    with h5py.File(bad / shard["name"], "r+") as file:
        del file["meta"]
        file["meta"] = json.dumps(meta)
    with pytest.raises(CheckpointError, match=f"{shard['name']}.*damaged|cannot read .*{shard['name']}"):
        load_clocks(bad, "w")

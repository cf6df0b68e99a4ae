"""Whole runs on compressed files, which the workers of a host share: the bits of those on plain files."""

from __future__ import annotations

import gzip
import json
import lzma
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import TinyData
from synthetic import run_twin

from mpips.data import stream
from mpips.rundir import unpacked
from mpips.transport.network_faults import Fault


@pytest.fixture
def decompressed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Share files as the ranks of a run do; returns those that were decompressed."""
    found: list[str] = []
    original = stream.decompressed

    def counting(path: str, file: Any, kind: str) -> Any:
        found.extend([path] if kind else [])
        return original(path, file, kind)

    monkeypatch.setattr(stream, "decompressed", counting)
    monkeypatch.setattr(unpacked, "IN_MEMORY", ())
    monkeypatch.setattr(unpacked, "ROOM_PART", 0.0)
    monkeypatch.setattr(unpacked, "ROOM", 0)
    monkeypatch.setattr(unpacked.tempfile, "tempdir", str(tmp_path))
    with unpacked.sharing("twin", 1.0):
        yield found
    assert not list(tmp_path.glob("mpips-unpacked-*"))


@pytest.fixture
def packed(tiny_data: TinyData, tmp_path: Path) -> Path:
    path = tmp_path / "train.svm.xz"
    path.write_bytes(lzma.compress(tiny_data.train.read_bytes()))
    return path


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("algorithm", ["darlin", "ftrl"])
def test_the_bits_of_plain_files(
    tiny_data: TinyData, packed: Path, decompressed: list[str], algorithm: str, workers: int
) -> None:
    settings = {"algorithm": algorithm, "batch": 20, "passes": 3}
    plain = run_twin(tiny_data.train, workers=workers, settings=settings)
    assert not decompressed
    assert run_twin(packed, workers=workers, settings=settings).sha == plain.sha
    # A worker alone decompresses in the first pass, whose mini-batches it keeps, before it, for the number of features,
    # and for the objective.
    once = 1 if workers > 1 or algorithm == "darlin" else 3
    assert len(decompressed) == once


@pytest.mark.parametrize("algorithm", ["darlin", "ftrl"])
def test_a_lost_workers_part_is_read_again(
    tiny_data: TinyData, packed: Path, decompressed: list[str], algorithm: str
) -> None:
    settings = {"algorithm": algorithm, "batch": 20, "passes": 3}
    network = {"faults": [Fault("kill", 3, after_messages=60)], "spares": 0}
    plain, shared = (
        run_twin(path, workers=3, settings=settings, network=network) for path in (tiny_data.train, packed)
    )
    assert [event["gone"] for event in shared.log if event["event"] == "workers"] == [[3]]
    assert shared.sha == plain.sha and decompressed.count(str(packed)) == 1


@pytest.mark.ranks
@pytest.mark.once
def test_ranks_share_a_file(tiny_data: TinyData, tmp_path: Path, run_mpips: Callable[..., Any]) -> None:
    (tmp_path / "train.svm.gz").write_bytes(gzip.compress(tiny_data.train.read_bytes()))
    job = tmp_path / "job.toml"
    job.write_text(
        '[job]\nprogram = "sparse_lr"\n[layout]\nworkers = 4\n[data]\ntrain = "train.svm.gz"\n'
        '[sparse_lr]\nalgorithm = "ftrl"\nbatch = 20\npasses = 2\n'
    )
    (tmp_path / "tmp").mkdir()
    environ = {"TMPDIR": str(tmp_path / "tmp")}
    done = run_mpips("run", job, "--run-dir", "run", cwd=tmp_path, environ=environ)
    assert done.code == 0, done.stderr
    settings = {"algorithm": "ftrl", "batch": 20, "passes": 2}
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["parameters_sha256"] == run_twin(tiny_data.train, workers=4, settings=settings).sha
    assert not list((tmp_path / "tmp").glob("mpips-unpacked-*"))

"""Runs whose rows are larger than memory: the same bits as in memory, whatever happens meanwhile."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from synthetic import Hooks, run_twin

from mpips.checkpoint.checkpoint import complete
from mpips.checkpoint.manifest import read_manifest
from mpips.cluster.node import Node
from mpips.embedding import Embedding
from mpips.rank.simulation import simulate
from mpips.scheduler.scheduler import Cluster
from mpips.storage.disk.direct_file import DirectFile
from mpips.storage.disk.failure import StoreFailed
from mpips.storage.disk.spec import LEAST
from mpips.storage.disk.store import Store
from mpips.storage.updates import VectorSpec
from mpips.transport.message import Command, Message
from mpips.transport.network_faults import Fault

PROGRAM = """
from dataclasses import dataclass
import numpy as np
from mpips import Uniform, VectorSpec

@dataclass(frozen=True)
class Settings:
    steps: int = 12

def schedule(cluster, settings):
    state = cluster.restore() or {"step": 0}
    rows = VectorSpec("rows", "float32", width=192, update="adagrad", init=Uniform(-1, 1, seed=2))
    vectors = [cluster.vector(rows), cluster.vector(VectorSpec("dense", width=64, extent=6000, dense=True))]
    for step in range(state["step"], settings.steps):
        cluster.workers.call("train", {"step": step})
        if cluster.due(step + 1):
            cluster.checkpoint(step + 1, {"step": step + 1})
    return {"sha": [cluster.digest(each) for each in vectors]}

class Worker:
    def __init__(self, context):
        self.vectors = context.vectors

    def train(self, step):
        rng = np.random.default_rng(step)
        rows, dense = self.vectors["rows"], self.vectors["dense"]
        keys = np.unique((9000 * rng.random(1200) ** 1.3).astype(np.uint64))
        rows.announce(keys)
        rows.push(keys, 0.1 * rows.pull_wait(keys) + 1).result()
        keys = np.unique(rng.integers(0, 6000, 300).astype(np.uint64))
        dense.push(keys, 0.5 * dense.pull_wait(keys) + 1).result()
"""


@pytest.fixture
def program(tmp_path: Path) -> Path:
    made = tmp_path / "paged.py"
    made.write_text(PROGRAM)
    return made


def trained(
    program: Path, stores: list[Store] | None, hooks: Hooks | None = None, **network: Any
) -> list[str]:
    """Train on the twin, with rows on disk if there is a list for the stores; return the digests."""

    def store() -> Store | None:
        if stores is None:
            return None
        stores.append(Store(LEAST, program.parent))
        return stores[-1]

    incremental = network.pop("incremental", 0)
    tables: dict[str, Any] = (
        {"checkpoint": {"every": 6, "keep": 9, "incremental": incremental}} if hooks else {}
    )
    network = {"replicas": 1, "virtual_servers": 2, "horizon": 600.0, "store": store, **network}
    servers = network.pop("servers", 2)
    outcome = run_twin(program, servers, program=str(program), hooks=hooks, network=network, **tables)
    sha: list[str] = outcome.metrics["sha"]
    return sha


def test_rows_on_disk_end_as_the_same_bits_with_deaths_moves_and_checkpoints(
    program: Path, tmp_path: Path
) -> None:
    expected = trained(program, None)
    stores: list[Store] = []
    saved = tmp_path / "saved"
    assert trained(program, stores, Hooks(checkpoints=saved)) == expected
    used = [each for each in stores if each.on_disk]
    assert len(used) == 2 and all(each.on_disk > 2 * LEAST and each.used <= 1.02 * LEAST for each in used)
    # Of a server whose rows are on disk, resumed by three, and by servers whose rows are in memory.
    first = complete(saved)[0]
    assert trained(program, [], Hooks(checkpoints=tmp_path / "more", resume=first), servers=3) == expected
    assert trained(program, None, Hooks(checkpoints=tmp_path / "other", resume=first)) == expected
    # A server dies; a spare gets copies of its shards.
    stores = []
    faults = [Fault("kill", 1, after_messages=150)]
    assert trained(program, stores, spares=1, faults=faults) == expected
    assert sum(each.on_disk > 0 for each in stores) >= 2


@pytest.mark.parametrize("replicas", [1, 0])
def test_a_server_whose_disk_is_full_ends_as_a_dead_one(
    program: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    replicas: int,
) -> None:
    """What it was to apply is not lost: the copies of its shards have it, or the run ends."""
    real = DirectFile.grow

    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def grow(file: DirectFile, size: int) -> None:
        with monkeypatch.context() as patched:
            if size > 400_000 and (not replicas or file.folder == tmp_path / "1"):
                patched.setattr(os, "posix_fallocate", full)
            real(file, size)

    monkeypatch.setattr(DirectFile, "grow", grow)
    stores: list[Store] = []

    def store() -> Store:
        folder = tmp_path / str(len(stores))
        folder.mkdir()
        stores.append(Store(LEAST, folder))
        return stores[-1]

    network = {"replicas": replicas, "virtual_servers": 2, "horizon": 600.0, "store": store}
    if not replicas:
        with pytest.raises(StoreFailed, match=r"has no room for .* bytes of rows: No space left on device"):
            run_twin(program, 2, program=str(program), network=network)
        return
    outcome = run_twin(program, 2, program=str(program), network=network)
    assert outcome.metrics["sha"] == trained(program, None)
    assert "lost" in caplog.text


def test_announced_keys_may_be_changed_at_once(tmp_path: Path) -> None:
    """Nobody waits for the message, and keys that are no longer unique would be two rows of one slot."""
    keys, sent = np.array([3, 8], np.uint64), list[Message]()

    def note(message: Message) -> None:
        if message.command is Command.ANNOUNCE:
            sent.append(message)

    def attach(node: Node) -> None:
        node.observers.sent += (note,)

    def schedule(cluster: Cluster) -> None:
        cluster.create_vector(VectorSpec("w")).announce(keys)

    simulate(schedule, worker=lambda context: None, store=lambda: Store(LEAST, tmp_path), attach=attach)
    (message,) = sent
    assert message.keys is not None and np.array_equal(message.keys, keys)
    assert not np.shares_memory(message.keys, keys)


def test_rows_that_are_fetched_ahead_are_announced_while_their_pull_has_to_wait(tmp_path: Path) -> None:
    sent = list[list[int]]()

    def note(message: Message) -> None:
        if message.command is Command.ANNOUNCE:
            assert message.keys is not None
            sent.append(message.keys.tolist())

    def attach(node: Node) -> None:
        node.observers.sent += (note,)

    def schedule(cluster: Cluster) -> None:
        table = Embedding(cluster.create_vector(VectorSpec("w")))
        for _, batch in table.ahead([[3, 8], [5], [8, 8, 2]], lambda ids: ids):
            batch.push(np.ones((len(batch.keys), 1)))

    simulate(schedule, worker=lambda context: None, store=lambda: Store(LEAST, tmp_path), attach=attach)
    assert sent == [[5], [2, 8]]


def test_deltas_of_rows_on_disk_are_those_of_rows_in_memory(program: Path, tmp_path: Path) -> None:
    """Also of rows that a server has got from one that has died."""

    def saved(name: str, stores: list[Store] | None, **network: Any) -> tuple[list[str], list[Path]]:
        sha = trained(program, stores, Hooks(checkpoints=tmp_path / name), incremental=3, **network)
        return sha, complete(tmp_path / name)

    expected, plain = saved("memory", None)
    faults = [Fault("kill", 1, after_messages=250)]
    for name, network in (("disk", dict[str, Any]()), ("deaths", {"faults": faults, "spares": 1})):
        found, mine = saved(name, [], **network)
        assert found == expected and [counts(each) for each in mine] == [counts(each) for each in plain]
    assert [sum(changed for changed, _ in counts(each).values()) < 8_000 for each in plain] == [False, True]
    resumed = trained(program, [], Hooks(checkpoints=tmp_path / "more", resume=mine[0]), servers=3)
    assert resumed == expected


def counts(checkpoint: Path) -> dict[str, tuple[int, int]]:
    """Return the rows that a checkpoint has of each vector, and the keys that it deletes."""
    found: dict[str, tuple[int, int]] = {}
    for entry in read_manifest(checkpoint)["files"]:
        for name, vector in entry.get("vectors", {}).items():
            rows, deleted = found.get(name, (0, 0))
            found[name] = rows + vector["rows"], deleted + vector.get("deleted", 0)
    return found


@pytest.mark.ranks
@pytest.mark.once
def test_a_whole_run_with_rows_on_disk(program: Path, tmp_path: Path, run_mpips: Callable[..., Any]) -> None:
    (tmp_path / "job.toml").write_text(
        f'[job]\nprogram = "paged.py"\n[layout]\nservers = 2\nworkers = 1\n[store]\nmemory = {LEAST}\n'
        f"folder = {json.dumps(str(tmp_path))}\n"
    )
    finished = run_mpips("run", tmp_path / "job.toml", "--run-dir", tmp_path / "run")
    assert finished.code == 0, finished
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["metrics"]["sha"] == trained(program, None)
    stores = [each["store"] for each in result["ranks"] if each["role"] == "server"]
    assert all(each["limit"] == LEAST and each["disk"] > LEAST >= 0.98 * each["memory"] for each in stores)

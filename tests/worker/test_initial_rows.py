"""Initial values: a matrix is factorised to the same bits on any layout, with any failures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from simulated import simulate

from mpips.checkpoint.inspection import describe
from mpips.checkpoint.loading import vectors
from mpips.checkpoint.manifest import read_manifest
from mpips.data.spec import DataSpec
from mpips.errors import CheckpointError
from mpips.filters.chain import Chain
from mpips.filters.named import chain_of
from mpips.ranges import KeyRange
from mpips.replay.history import read_history
from mpips.report.table_diff import of_checkpoint, tables_differ
from mpips.scheduler.resuming import changed_settings
from mpips.scheduler.scheduler import Cluster
from mpips.storage.initial import Initial, Normal, Uniform
from mpips.storage.updates import VectorSpec
from mpips.transport.in_memory import Fault
from mpips.transport.network_faults import random_delays
from mpips.worker.worker import Context

USERS, ITEMS, RANK = 24, 16, 3
LOW = Uniform(-0.5, 0.5, seed=1)


def ratings() -> np.ndarray[Any, Any]:
    """Return a matrix of rank 3."""
    rng = np.random.default_rng(5)
    return rng.normal(size=(USERS, RANK)) @ rng.normal(size=(RANK, ITEMS))  # type: ignore[no-any-return]


def names(count: int) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Return keys that lie on all shards."""
    return np.arange(count, dtype=np.uint64) * np.uint64(2**64 // count)


class Factoriser:
    """Descends along the gradient of |R - U V'|^2 for its part of the users; `kinds` are sparse or dense vectors."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def step(self, number: int, dense: bool) -> None:
        context = self.context
        parts = np.array_split(np.arange(USERS), context.count)
        mine = parts[context.index]
        u, v = context.vectors["u"], context.vectors["v"]
        users: Any = KeyRange(int(mine[0]), int(mine[-1]) + 1) if dense else u.key_list(names(USERS)[mine])
        items: Any = KeyRange(0, ITEMS) if dense else v.key_list(names(ITEMS))
        left, right = (task.result() for task in (u.pull(users), v.pull(items)))
        error = left @ right.T - ratings()[mine]
        context.node.wait_all([
            u.push(users, error @ right), v.push(items, error.T @ left, round=number),
        ])  # fmt: skip


def specs(init: Initial, other: Initial, dense: bool = False, update: str = "sgd") -> list[VectorSpec]:
    rate = {"sgd": {"rate": 0.01}}.get(update, {})
    return [
        VectorSpec("u", width=RANK, update=update, settings=rate, init=init, dense=dense,
                   extent=USERS if dense else 2**64),
        VectorSpec("v", width=RANK, update=update, settings=rate, init=other, dense=dense,
                   extent=ITEMS if dense else 2**64, aggregate=True),
    ]  # fmt: skip


def loss(cluster: Cluster, dense: bool) -> float:
    keys: list[Any] = [KeyRange(0, n) if dense else names(n) for n in (USERS, ITEMS)]
    left, right = (cluster.vectors[name].pull(key).result() for name, key in zip("uv", keys, strict=True))
    return float(((left @ right.T - ratings()) ** 2).sum())


def factorised(made: list[VectorSpec], steps: int = 40, begin: int = 0) -> Callable[[Cluster], Any]:
    dense = made[0].dense

    def schedule(cluster: Cluster) -> Any:
        for spec in made:
            cluster.create_vector(spec)
        before = loss(cluster, dense)
        for number in range(begin, begin + steps):
            cluster.workers.call("step", {"number": number, "dense": dense})
        return before, loss(cluster, dense), [cluster.digest(each) for each in cluster.vectors.values()]

    return schedule


def test_factorisation_learns_from_random_initial_values_and_not_from_zero() -> None:
    before, after, digests = simulate(factorised(specs(0.0, 0.0)), Factoriser, workers=2)
    assert after == before == pytest.approx(float((ratings() ** 2).sum()))
    assert digests[0] == digests[1]  # No row is other than its initial value.
    before, after, digests = simulate(factorised(specs(LOW, Normal(0.0, 0.3, 2)), 300), Factoriser, workers=2)
    assert after < 0.01 * before and digests[0] != digests[1]


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("update", ["sgd", "adagrad", "ftrl"])
def test_any_layout_and_any_failure_gives_the_same_bits(dense: bool, update: str) -> None:
    program = factorised(specs(LOW, Normal(0.0, 0.3, 2), dense, update), 12)
    plain = simulate(program, Factoriser, servers=1, workers=2)
    assert simulate(program, Factoriser, servers=3, workers=2, virtual_servers=3) == plain
    assert (
        simulate(program, Factoriser, servers=2, workers=2, replicas=1, delays=random_delays(3), seed=3)
        == plain
    )
    for messages in (40, 120, 200):
        dying = [Fault("kill", 2, after_messages=messages)]
        observed: dict[str, Any] = {}
        found = simulate(
            program, Factoriser, servers=3, workers=2, replicas=1, spares=1, faults=dying, seed=messages,
            horizon=120.0, observed=observed,
        )  # fmt: skip
        assert found == plain and 2 not in observed["view"].servers


def test_a_list_that_the_servers_cached_with_absent_keys_reads_their_initial_values() -> None:
    def schedule(cluster: Cluster) -> None:
        w = cluster.create_vector(VectorSpec("w", "float32", width=2, init=LOW))
        keys = names(50)
        listed, wanted = w.key_list(keys), w.spec.initial(keys)
        for added in (None, keys[::3], keys[1::3], keys[2::3], None):
            if added is not None:
                w.push(added, np.ones((len(added), 2), np.float32)).result()
                wanted[np.isin(keys, added)] += np.float32(1)
            for named in (listed, listed, keys, keys.copy()):
                assert w.pull(named).result().tobytes() == wanted.tobytes()
            # A push_pull of these keys starts from them too.
            again = w.push_pull(keys[:7], np.zeros((7, 2), np.float32)).result()
            assert again.tobytes() == wanted[:7].tobytes()
        small = cluster.create_vector(VectorSpec("s", extent=9, init=0.5))
        assert small.pull(KeyRange(2, 8)).result().tolist() == [0.5] * 6
        assert [(keys.tolist(), rows.tolist()) for keys, rows in cluster.export(small) if len(keys)] == []

    simulate(schedule, lambda context: None, servers=3)


def test_filters_do_not_change_initial_values() -> None:
    def chains() -> tuple[Chain, Chain]:
        return chain_of(["zeros", "zstd"]), chain_of(["zeros", "zstd"])

    program = factorised(specs(0.5, Uniform(-1.0, 1.0, 3)), 5)
    assert simulate(program, Factoriser, servers=2, workers=2, filters=chains) == simulate(
        program, Factoriser, servers=2, workers=2
    )


def test_a_recorded_run_is_replayed_to_the_same_bits(tmp_path: Path) -> None:
    program = factorised(specs(LOW, Normal(0.0, 0.3, 2)), 5)
    layout: dict[str, Any] = {"servers": 2, "workers": 2}
    first = simulate(
        program, Factoriser, seed=1, delays=random_delays(1), record=tmp_path / "record", **layout
    )
    read_history(tmp_path / "record").save(tmp_path / "replay")
    assert simulate(program, Factoriser, seed=2, replay=tmp_path / "replay", **layout) == first


# --- checkpoints ---------------------------------------------------------------------------------------


def a_job(**settings: Any) -> Any:
    table = {"mf": {"seed": 1, "passes": 3} | settings}
    kept = SimpleNamespace(keep=3, incremental=0)
    return SimpleNamespace(program="mf", table="mf", tables=lambda: table, checkpoint=kept, data=DataSpec())


def saved(folder: Path, init: Initial, servers: int, at: int = 4, of: int = 8) -> tuple[Path, Any]:
    """Factorise with a checkpoint on the way; return it, and what the whole run gives."""
    found: list[Path] = []

    def schedule(cluster: Cluster) -> Any:
        cluster.checkpoints = folder
        for spec in specs(init, Normal(0.0, 0.3, 2)):
            cluster.create_vector(spec)
        for number in range(of):
            if number == at:
                path = cluster.checkpoint(at, {})
                assert path is not None
                found.append(path)
                cluster.coordinator.settle()
            cluster.workers.call("step", {"number": number, "dense": False})
        return [cluster.digest(each) for each in cluster.vectors.values()]

    result = simulate(schedule, Factoriser, servers=servers, workers=2, job=a_job())
    return found[0], result


def test_a_checkpoint_has_the_initial_values_and_a_resumed_run_continues_with_them(tmp_path: Path) -> None:
    path, plain = saved(tmp_path / "a", LOW, 2)
    assert {name: spec.init for name, spec in vectors(path).items()} == {"u": LOW, "v": Normal(0.0, 0.3, 2)}
    assert "init Uniform(low=-0.5, high=0.5, seed=1)" in describe(path)

    def schedule(cluster: Cluster) -> Any:
        cluster.resume = path
        assert cluster.restore() is not None
        absent = np.array([5, 2**63 + 11], np.uint64)
        assert np.array_equal(
            cluster.vectors["u"].pull(absent).result(), cluster.vectors["u"].spec.initial(absent)
        )
        for number in range(4, 8):
            cluster.workers.call("step", {"number": number, "dense": False})
        return [cluster.digest(each) for each in cluster.vectors.values()]

    assert simulate(schedule, Factoriser, servers=3, workers=2, job=a_job()) == plain


def test_another_initial_value_is_refused_on_resume(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, LOW, 1)

    def schedule(cluster: Cluster) -> None:
        cluster.resume = path
        with pytest.raises(
            CheckpointError, match=r"written with \[mf\] seed = 1, which its vectors keep, not 9"
        ):
            cluster.restore()

    simulate(schedule, Factoriser, workers=2, job=a_job(seed=9))
    about = read_manifest(path)["about"]
    constant = {"w": {"settings": {}, "init": 0.5}}
    about["job"]["mf"]["init"] = 0.5
    with pytest.raises(CheckpointError, match=r"init = 0.5, which its vectors keep, not 0.25"):
        changed_settings(path, about, constant, a_job(init=0.25))
    assert changed_settings(path, about, constant, a_job(init=0.5, passes=4)) == ["[mf] passes = 4, was 3"]


def test_a_checkpoint_of_zeros_is_written_as_before(tmp_path: Path) -> None:
    path, _ = saved(tmp_path, 0.0, 1, 1, 2)
    parts = [entry["vectors"] for entry in read_manifest(path)["files"] if entry["kind"] == "server"]
    assert "init" not in parts[0]["u"]["spec"] and parts[0]["v"]["spec"]["init"] == {
        "mean": 0.0, "std": 0.3, "seed": 2,
    }  # fmt: skip


def test_checkpoints_are_compared_by_what_absent_keys_read_as(tmp_path: Path) -> None:
    def written(name: str, init: Initial, touched: int) -> Path:
        paths: list[Path] = []

        def schedule(cluster: Cluster) -> None:
            cluster.checkpoints = tmp_path / name
            w = cluster.create_vector(VectorSpec("w", init=init))
            w.push(names(9)[:touched], np.zeros(touched)).result()
            path = cluster.checkpoint(1, {})
            assert path is not None
            cluster.coordinator.settle()
            paths.append(path)

        simulate(schedule, lambda context: None, servers=2, job=a_job())
        return paths[0]

    few, all_of_them = written("few", LOW, 3), written("all", LOW, 9)
    (same,) = tables_differ(few, all_of_them, of_checkpoint)
    assert same.same and same.keys == (3, 9)
    (other,) = tables_differ(few, written("other", Uniform(-0.5, 0.5, 2), 3), of_checkpoint)
    assert not other.same and other.differing == 3 and "other keys read as Uniform(" in other.note

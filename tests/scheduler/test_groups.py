"""Worker groups: each distributes its own data, also if workers are lost."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import job_of

from mpips import Answer, Cluster, Context
from mpips.cluster.layout import Layout, LayoutSpec
from mpips.errors import UsageError, WorkerLost
from mpips.rank.simulation import simulate
from mpips.transport.network_faults import Fault

GROUPS = {"train": 2, "query": 3}


class Worker:
    """Says who it is, and takes its part of 12 pieces of data."""

    def __init__(self, context: Context) -> None:
        self.context = context

    def who(self) -> list[Any]:
        context = self.context
        return [context.group, context.index, context.count, context.index_of_all, context.count_of_all]

    def part(self) -> list[int]:
        return list(range(12))[self.context.index :: self.context.count]


def test_each_group_has_places_of_its_own() -> None:
    def schedule(cluster: Cluster) -> Any:
        return {name: cluster.group(name).call("who") for name in GROUPS}, cluster.workers.call("who")

    groups, everyone = simulate(schedule, Worker, workers=GROUPS, servers=2)
    assert groups["train"] == [["train", 0, 2, 0, 5], ["train", 1, 2, 1, 5]]
    assert groups["query"] == [["query", each, 3, 2 + each, 5] for each in range(3)]
    assert everyone == groups["train"] + groups["query"]


def test_without_groups_there_is_one() -> None:
    assert simulate(lambda cluster: cluster.workers.call("who"), Worker, workers=2) == [
        ["workers", 0, 2, 0, 2],
        ["workers", 1, 2, 1, 2],
    ]


def test_a_spare_takes_the_place_of_a_lost_worker_of_its_group_and_all_data_are_read_once() -> None:
    def schedule(cluster: Cluster) -> Any:
        def taken(name: str) -> list[int]:
            return sorted(piece for part in cluster.group(name).call("part") for piece in part)

        assert taken("train") == taken("query") == list(range(12))
        cluster.node.wait_until(lambda: cluster.node.van.now() > 2.0)
        with pytest.raises(WorkerLost):
            cluster.workers.call("part")
        cluster.regroup()
        assert taken("train") == taken("query") == list(range(12))
        return {name: [each[:3] for each in cluster.group(name).call("who")] for name in GROUPS}

    layout = Layout.of(8, LayoutSpec(workers=GROUPS, spares=1))
    faults = [Fault("kill", layout.group("query")[1], at=1.0)]
    assert simulate(schedule, Worker, workers=GROUPS, spares=1, faults=faults) == {
        "train": [["train", 0, 2], ["train", 1, 2]],
        "query": [["query", 0, 3], ["query", 1, 3], ["query", 2, 3]],
    }


@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(0, 3),
    st.randoms(use_true_random=False),
)
def test_every_worker_is_in_one_group_and_remaining_workers_stay(
    sizes: list[int], spares: int, chance: Any
) -> None:
    groups = {f"g{number}": size for number, size in enumerate(sizes)}
    spec = LayoutSpec(workers=groups, spares=spares)
    layout = Layout.of(spec.size(), spec)
    workers = [rank for rank in (*layout.workers, *layout.spares) if chance.random() < 0.7]
    chance.shuffle(workers)
    members = layout.members(workers)
    assert sorted(sum(members.values(), ())) == sorted(workers)
    for name, ranks in members.items():
        assert set(layout.group(name)) & set(workers) <= set(ranks)
        assert [rank for rank in workers if rank in ranks] == list(ranks)


class Remembering(Worker):
    """Has a state of its own, or makes one anew."""

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.mine = -1

    def take(self) -> None:
        self.mine = self.context.index_of_all

    def state(self) -> dict[str, Any]:
        return {"mine": np.array([self.mine])}

    def restore(self, mine: Any) -> None:
        self.mine = int(mine[0])

    def rebuild(self) -> None:
        self.mine = 100

    def told(self) -> int:
        return self.mine


@pytest.mark.parametrize(
    ("groups", "held"),
    [(GROUPS, [0, 1, 2, 3, 4]), ({"train": 3, "query": 2}, [100] * 5), ({"all": 5}, [100] * 5)],
)
def test_a_worker_does_not_get_the_state_of_one_of_another_group(
    tmp_path: Path, groups: dict[str, int], held: list[int]
) -> None:
    job = job_of(tmp_path, {"job": {"program": "sketch"}})

    def write(cluster: Cluster) -> Path | None:
        cluster.checkpoints = tmp_path / "checkpoints"
        cluster.workers.call("take")
        made = cluster.checkpoint(1, {})
        cluster.coordinator.settle()
        return made

    folder = simulate(write, Remembering, workers=GROUPS, job=job)

    def resume(cluster: Cluster) -> Any:
        cluster.resume = folder
        cluster.restore()
        return cluster.workers.call("told")

    assert simulate(resume, Remembering, workers=groups, job=job) == held


OTHERS: dict[str, Any] = {
    "narrower": np.ones((3, 1)), "fewer": np.ones((1, 2)), "float32": np.ones((3, 2), np.float32), "none": None,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_rows_of_other_shapes_or_types_are_not_added_up(name: str) -> None:
    class Adds:
        def __init__(self, context: Context) -> None:
            self.index = context.index

        def rows(self, of: str) -> Answer:
            return Answer(values=OTHERS[of] if of and self.index else np.ones((3, 2)))

    def total(cluster: Cluster, of: str) -> Any:
        return cluster.workers.total(cluster.workers.start("rows", {"of": of})).tolist()

    assert simulate(lambda cluster: total(cluster, ""), Adds, workers=3) == [[3.0, 3.0]] * 3
    with pytest.raises(UsageError, match=r"call of rows: .*float64 of shape \[3, 2\], "):
        simulate(lambda cluster: total(cluster, name), Adds, workers=2)

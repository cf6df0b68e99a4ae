"""Roles by rank, errors of one line, and the split into communicators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from conftest import Finished
from hypothesis import given

from mpips.cluster.layout import Layout, LayoutSpec, Place, Role, assign, check_singleton, split
from mpips.errors import LayoutError

counts = st.integers(1, 5)
specs = st.builds(
    LayoutSpec,
    servers=counts,
    workers=counts | st.dictionaries(st.sampled_from(["train", "query", "evaluate"]), counts, min_size=1),
    spares=st.integers(0, 3),
    schedulers=counts,
)


@given(specs)
def test_every_rank_has_one_place_in_the_order_of_roles(spec: LayoutSpec) -> None:
    layout = Layout.of(spec.size(), spec)
    assert [place.rank for place in layout.places] == list(range(layout.size))
    assert layout.schedulers + layout.servers + layout.workers + layout.spares == tuple(range(layout.size))
    assert (len(layout.schedulers), len(layout.servers), len(layout.spares)) == (
        spec.schedulers,
        spec.servers,
        spec.spares,
    )
    assert {name: len(layout.group(name)) for name in layout.groups()} == spec.groups()
    assert sum((layout.group(name) for name in layout.groups()), ()) == layout.workers
    for ranks in (layout.schedulers, layout.servers, layout.workers, layout.spares):
        assert [layout.places[rank].index for rank in ranks] == list(range(len(ranks)))
    assert all((place.group != "") == (place.role is Role.WORKER) for place in layout.places)
    assert layout.role(0) is Role.SCHEDULER


def test_a_layout_in_full() -> None:
    places = assign(6, LayoutSpec(servers=1, workers={"train": 2, "query": 1}, spares=1))
    assert places == (
        Place(0, Role.SCHEDULER, 0, ""),
        Place(1, Role.SERVER, 0, ""),
        Place(2, Role.WORKER, 0, "train"),
        Place(3, Role.WORKER, 1, "train"),
        Place(4, Role.WORKER, 2, "query"),
        Place(5, Role.SPARE, 0, ""),
    )
    assert str(places[4]) == "worker 2"
    with pytest.raises(KeyError, match="no worker group 'workers'; there are train, query"):
        Layout(places).group("workers")


@pytest.mark.parametrize(
    ("size", "spec", "text"),
    [
        (
            3,
            LayoutSpec(workers=2),
            "this job needs 4 ranks (1 scheduler + 1 server + 2 workers), 3 were started: "
            "use `mpirun -n 4`, or --set layout.workers=1",
        ),
        (
            1,
            LayoutSpec(spares=2),
            "this job needs 5 ranks (1 scheduler + 1 server + 1 worker + 2 spares), 1 was started: "
            "use `mpirun -n 5`",
        ),
        (
            9,
            LayoutSpec(workers={"a": 1, "b": 2}, servers=2),
            "this job needs 6 ranks (1 scheduler + 2 servers + 3 workers), 9 were started: use `mpirun -n 6`",
        ),
    ],
)
def test_a_world_of_another_size_is_refused_in_one_line(size: int, spec: LayoutSpec, text: str) -> None:
    with pytest.raises(LayoutError) as refusal:
        assign(size, spec)
    assert str(refusal.value) == text


@pytest.mark.parametrize(
    ("table", "text"),
    [
        ({"servers": 0}, "servers is 0; a job needs at least 1: use --set layout.servers=1"),
        ({"workers": -1}, "workers is -1; a job needs at least 1: use --set layout.workers=1"),
        ({"schedulers": 0}, "schedulers is 0; a job needs at least 1: use --set layout.schedulers=1"),
        ({"spares": -2}, "spares is -2; it cannot be negative: use --set layout.spares=0"),
        (
            {"workers": {"train": 1, "query": 0}},
            "workers.query is 0; a job needs at least 1: use --set layout.workers.query=1",
        ),
        ({"workers": {}}, "workers names no group; a job needs at least one worker: --set layout.workers=1"),
    ],
)
def test_impossible_numbers_are_refused_in_one_line(table: dict[str, Any], text: str) -> None:
    with pytest.raises(LayoutError) as refusal:
        LayoutSpec(**table)
    assert str(refusal.value) == text


@given(specs, st.integers(1, 30))
def test_what_a_refusal_advises_works(spec: LayoutSpec, size: int) -> None:
    if size == spec.size():
        return
    with pytest.raises(LayoutError) as refusal:
        assign(size, spec)
    text = str(refusal.value)
    assert "\n" not in text
    assert f"mpirun -n {spec.size()}" in text
    if "layout.workers=" in text:
        workers = int(text.rpartition("=")[2])
        assert len(assign(size, LayoutSpec(spec.servers, workers, spec.spares, spec.schedulers))) == size


@pytest.mark.parametrize(
    ("environ", "advice"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, "srun started 4 ranks"),
        ({"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "4"}, "srun started 4 ranks"),
        ({"PMI_SIZE": "3"}, "started 3 ranks (PMI_SIZE)"),
        ({"OMPI_COMM_WORLD_SIZE": "2"}, "started 2 ranks (OMPI_COMM_WORLD_SIZE)"),
        ({"PMI_SIZE": "3", "SLURM_STEP_NUM_TASKS": "2"}, "started 3 ranks (PMI_SIZE)"),
    ],
)
def test_singletons_are_detected(environ: dict[str, str], advice: str) -> None:
    with pytest.raises(LayoutError) as refusal:
        check_singleton(1, environ)
    assert advice in str(refusal.value)
    assert "\n" not in str(refusal.value)
    check_singleton(2, environ)


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"SLURM_STEP_NUM_TASKS": "1"},
        {"SLURM_STEP_NUM_TASKS": "4", "OMPI_COMM_WORLD_SIZE": "1"},  # mpirun -n 1 in an allocation of 4 nodes
        {"SLURM_STEP_NUM_TASKS": "4", "PMI_SIZE": "1"},
        {"PMI_SIZE": "1"},
        {"PMI_SIZE": "none"},
    ],
)
def test_a_world_of_one_on_purpose_is_no_singleton(environ: dict[str, str]) -> None:
    check_singleton(1, environ)


SPLIT = """
from mpi4py import MPI
from mpips.cluster.layout import Layout, LayoutSpec, Role, split
world = MPI.COMM_WORLD
layout = Layout.of(world.size, LayoutSpec(servers=2, workers={"train": 1, "query": 1}))
mine = layout.places[world.rank]
found = split(world, layout)
for role, ranks in ((Role.SCHEDULER, layout.schedulers), (Role.SERVER, layout.servers),
                    (Role.WORKER, layout.workers), (Role.SPARE, layout.spares)):
    each = getattr(found, role.value)
    assert bool(each) == (mine.role is role), (mine, role)
    if each:
        assert each.rank == mine.index and each.size == len(ranks), mine
assert (found.group.size == 1) if mine.role is Role.WORKER else not found.group
found.free()
open(f"rank-{world.rank}", "w").close()
"""


def test_split_on_five_ranks(tmp_path: Path, run_ranks: Callable[..., Finished]) -> None:
    script = tmp_path / "split.py"
    script.write_text(SPLIT)
    done = run_ranks(5, "-m", "mpi4py", script, cwd=tmp_path)
    assert done.code == 0, done.stderr
    assert len(list(tmp_path.glob("rank-*"))) == 5


def test_split_refuses_a_communicator_of_another_size() -> None:
    class Two:
        def Get_size(self) -> int:
            return 2

    with pytest.raises(LayoutError, match="layout has 3 ranks, the communicator 2"):
        split(Two(), Layout.of(3, LayoutSpec()))  # type: ignore[arg-type]

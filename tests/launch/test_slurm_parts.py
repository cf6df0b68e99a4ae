"""Ranks on nodes: a layout that fits is used as requested; for one that does not, the error names one that does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.cluster.layout import LayoutSpec
from mpips.errors import InputError
from mpips.launch.slurm_parts import Component, elastic, nodes_of, split, uniform

SEVEN = LayoutSpec(servers=2, workers=4)
COUNT = st.integers(1, 40)


@given(COUNT, COUNT, COUNT, st.integers(0, 40))
def test_the_requested_nodes_have_room_for_every_rank_and_none_is_empty(
    servers: int, workers: int, nodes: int, per_node: int
) -> None:
    layout = LayoutSpec(servers=servers, workers=workers)
    try:
        part = uniform(layout, nodes, per_node, 1)
    except InputError as error:
        assert nodes > layout.size() or 0 < per_node * nodes < layout.size()
        assert "\n" not in str(error)
        return
    assert nodes <= part.ranks == layout.size() <= nodes * part.per_node
    assert part.per_node == per_node or (per_node == 0 and (part.per_node - 1) * nodes < layout.size())


def test_too_little_room_is_refused_with_options_that_fit() -> None:
    with pytest.raises(InputError) as caught:
        uniform(SEVEN, 2, 3, 1)
    assert str(caught.value) == (
        "the job: 7 ranks, but 2 x 3 have room for 6: "
        "use --nodes 3, or --ntasks-per-node 4, or fewer ranks (--workers)"
    )
    with pytest.raises(InputError, match=r"7 ranks are too few for 8 nodes: use --nodes 7, or more ranks"):
        uniform(SEVEN, 8, 0, 1)


def test_servers_and_workers_on_nodes_of_their_own_keep_the_order_of_ranks() -> None:
    layout = LayoutSpec(servers=2, workers=4, spares=1)
    assert split(layout, 1, 5, 0, 2, ("--mem=0",), ()) == (
        Component(1, 3, 3, 0, 2, ("--mem=0",)),
        Component(5, 1, 5, 0, 2, ()),
    )
    with pytest.raises(
        InputError, match=r"scheduler and servers: 3 ranks are too few for 4 nodes: use --server-nodes 3"
    ):
        split(layout, 4, 5, 0, 1)


def test_ranks_to_spare_are_workers() -> None:
    assert elastic(SEVEN, 2, 4, 8, 1) == (Component(2, 8, 0, 4, 1), 3)
    with pytest.raises(
        InputError, match="2 x 1 ranks leave no worker beside 3 others: use --ntasks-per-node 2"
    ):
        elastic(SEVEN, 2, 4, 1, 1)
    with pytest.raises(InputError, match="give --ntasks-per-node, and no groups of workers"):
        elastic(SEVEN, 2, 4, 0, 1)
    with pytest.raises(InputError, match="no groups of workers"):
        elastic(LayoutSpec(workers={"a": 1, "b": 2}), 2, 4, 8, 1)


@pytest.mark.parametrize(("text", "found"), [("3", (3, 3)), ("2-4", (2, 4)), ("2-2", (2, 2))])
def test_nodes_are_a_number_or_a_range(text: str, found: tuple[int, int]) -> None:
    assert nodes_of(text) == found


@pytest.mark.parametrize("text", ["0", "4-2", "-1", "2-", "a", "1k", "2,4", "٣"])
def test_other_nodes_are_refused(text: str) -> None:
    with pytest.raises(InputError, match="give a number, or MIN-MAX"):
        nodes_of(text)

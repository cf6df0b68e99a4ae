"""Faults that are put into the protocol on purpose are found: here, those that few trials suffice for."""

from __future__ import annotations

import pytest
from history.mutations import MUTATIONS, applied, find

from mpips.bench.failures import _trial


@pytest.mark.parametrize("name", ["duplicates", "keep replies", "kept replies", "probes"])
def test_a_fault_that_is_put_in_is_found(name: str) -> None:
    found = find(MUTATIONS[name], 20)
    assert 0 < found.after <= 20, found.how


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_fault_is_taken_out_again(name: str) -> None:
    mutation = MUTATIONS[name]
    table = mutation.owner if isinstance(mutation.owner, dict) else vars(mutation.owner)
    before = table[mutation.name]
    with applied(mutation):
        assert table[mutation.name] is not before
    assert table[mutation.name] is before


def test_without_a_fault_nothing_is_found() -> None:
    assert _trial.run(0).ok

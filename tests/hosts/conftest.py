"""Virtual hosts for the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from hosts.virtual_hosts import VirtualHosts, unavailable


@pytest.fixture(scope="session")
def able() -> None:
    """Skip where there can be no virtual hosts."""
    if why := unavailable():
        pytest.skip(why)


@pytest.fixture
def hosts(able: None) -> Iterator[Callable[[int], VirtualHosts]]:
    """Make virtual hosts, which end with the test."""
    made: list[VirtualHosts] = []

    def make(count: int) -> VirtualHosts:
        made.append(VirtualHosts(count))
        return made[-1]

    yield make
    for each in made:
        each.close()

"""The policy of a node: where its messages, idle moments and decisions come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from mpips.transport.message import Message

T = TypeVar("T")


class Gates(Protocol):
    """Decides when requests to a server's shards are executed."""

    def admit(self, link: Any, request: Message) -> None:
        """Take a request to the shard of a link."""


class Policy:
    """The policy of a live run: messages count as they come. `mpips.replay.player` has that of a run done again."""

    again = False
    """Whether a recorded run is done again, which asks nobody to stop and writes no checkpoints."""

    def delivery(self, deliver: Callable[[Message], None]) -> Callable[[Message], None]:
        """Give what takes each message that has arrived, where the node itself would `deliver` it."""
        return deliver

    def lost(self, address: int, time: int) -> bool:
        """Tell whether whoever is asked so, by the task of that time, counts as lost."""
        return False

    def tell(self) -> bool:
        """Do the next thing, when no message is there; give whether there was any."""
        return False

    def breathe(self, poll: Callable[[], bool]) -> None:
        """Let the node move messages inside a long loop of the program."""
        poll()

    def decide(self, number: int, make: Callable[[], T]) -> T:
        """Give the leader's decision of a number."""
        return make()

    def gates(self, server: Any) -> Gates | None:
        """Give what decides when requests to a server's shards are executed; None: at once, in order of arrival."""
        return None


LIVE = Policy()

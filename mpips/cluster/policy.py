"""The policy of a node: in which order messages take effect, and where decisions come from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from mpips.transport.message import Message

T = TypeVar("T")


class RequestOrder(Protocol):
    """Decides when requests to a server's shards are executed."""

    def admit(self, link: Any, request: Message) -> None:
        """Take a request to the shard of a link."""


class Policy:
    """The policy of a live run: messages take effect as they arrive. `mpips.replay.player` has that of a replay."""

    is_replay = False
    """Whether this is a replay, which ignores stop requests and writes no checkpoints."""

    def delivery(self, deliver: Callable[[Message], None]) -> Callable[[Message], None]:
        """Return the function that receives each arrived message; the node's own is `deliver`."""
        return deliver

    def lost(self, address: int, time: int) -> bool:
        """Return whether the part of the task `time` at `address` fails by the loss of a worker."""
        return False

    def next_event(self) -> bool:
        """Handle the next recorded event, when no message has arrived; return whether there was one."""
        return False

    def poll_in_program(self, poll: Callable[[], bool]) -> None:
        """Handle all that has arrived, inside a long loop of the program."""
        while poll():
            pass

    def decide(self, number: int, make: Callable[[], T]) -> T:
        """Return the leader's decision `number`, made by `make` unless it is recorded."""
        return make()

    def request_order(self, server: Any) -> RequestOrder | None:
        """Return the object that admits requests to a server's shards; None: at once, in order of arrival."""
        return None


LIVE = Policy()

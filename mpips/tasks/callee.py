"""The callee's side of the tasks of a rank: requests to the rank itself, from their arrival to their replies.

A request waits until it may start (`mpips.tasks.request_dedup`). Then the handler of its command executes it, and
replies at once or later; an exception of the handler is the reply. Requests to shards are not handled here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from numpy.typing import NDArray

from mpips.errors import ProtocolError
from mpips.keys import KeyArray
from mpips.tasks.request_dedup import RequestDedup
from mpips.tasks.task import Send
from mpips.transport.message import Command, Kind, Message, missing_of, reply_to


class Callee:
    """The requests to one rank.

    `answer(origin, reply)` sends a reply to a caller; `keeps`: replies are kept, since requests may arrive twice;
    `describe` makes the metadata of a failure from an exception.
    """

    def __init__(
        self, answer: Send, keeps: bool, describe: Callable[[BaseException], dict[str, Any]]
    ) -> None:
        self.inbox = RequestDedup(answer, keeps)
        self._answer, self._describe = answer, describe
        self.ready: deque[Message] = deque()
        """The requests that may start, and have not."""

    def admit(self, request: Message) -> None:
        """Receive a request; it starts when its dependencies are finished."""
        self.ready.extend(self.inbox.admit(request))

    def start(self, handlers: Mapping[Command, Callable[[Message], None]]) -> None:
        """Execute the next request that may start."""
        request = self.ready.popleft()
        try:
            handler = handlers.get(request.command)
            if handler is None:
                raise ProtocolError(f"this rank serves no {request.command.name} requests")
            handler(request)
        except Exception as error:
            self.fail(request, error)

    def reply(
        self,
        request: Message,
        values: NDArray[Any] | None = None,
        meta: dict[str, Any] | None = None,
        keys: KeyArray | None = None,
    ) -> None:
        """Finish a request, with rows of values, with metadata, with keys, or with nothing."""
        self._finish(request, reply_to(request, values, meta, keys))

    def fail(self, request: Message, error: BaseException) -> None:
        """Finish a request with an error, which its caller raises when it waits for the task."""
        self._finish(request, self.failure(request, error))

    def _finish(self, request: Message, reply: Message) -> None:
        self.ready.extend(self.inbox.finish(request.origin, request.time, reply))
        self._answer(request.origin, reply)

    def failure(self, request: Message, error: BaseException) -> Message:
        """Return the reply with the error of a failed request."""
        reply = reply_to(request, meta=self._describe(error))
        reply.kind = Kind.FAILURE
        return reply

    def probed(self, probe: Message) -> None:
        """Answer a caller's probe: name its requests that have not arrived."""
        missing = [(time, time + 1) for time, _ in probe.after if not self.inbox.repeat(probe.origin, time)]
        self._answer(probe.origin, missing_of(probe, missing))

"""Request deduplication: which of a caller's requests may start, which are finished (paper, sections 3.4 and 4.4).

A `RequestDedup` belongs to one address. A request starts when all requests that it depends on have finished there. Each
one starts exactly once; a repeated request is answered from its reply, which is kept until the caller acknowledges it.
A shard's `RequestDedup` moves with the shard, so that a push is applied once, whichever server applies it.

It is a state machine like `mpips.tasks.caller`: it gets messages and a function that sends, and never waits.
"""

from __future__ import annotations

from collections.abc import Callable

from mpips.tasks.task import Send
from mpips.transport.message import NO_ROUND, READS, Kind, Message

Kept = Message | Callable[[Message], Message]
"""The answer to a repeated request: the reply, or a function from the request to the reply."""


class _Caller:
    """A callee's state of one caller."""

    __slots__ = ("acked", "finished", "kept", "latest", "parked", "running")

    def __init__(self) -> None:
        self.acked = 0
        # The highest time that was received.
        self.latest = -1
        # Times from `acked` on.
        self.finished: set[int] = set()
        self.running: set[int] = set()
        self.parked: dict[int, Message] = {}
        self.kept: dict[int, Kept] = {}


def _forgotten(request: Message) -> Message:
    """Return the reply to a repeated request whose first reply was acknowledged: an error that no caller waits for."""
    text = (
        "the scheduler repeats a request whose answer was acknowledged, so its journal is lost; "
        "continue with --resume latest"
    )
    reply = Message(
        Kind.FAILURE,
        request.command,
        origin=request.origin,
        shard=request.shard,
        meta={"text": text, "journal": "lost"},
    )
    reply.time, reply.namespace = request.time, request.namespace
    return reply


class RequestDedup:
    """The requests to one address: which may start, which are finished; see the module.

    Its memory is bounded by the callers' windows: acknowledged requests are forgotten. Replies of requests that change
    nothing are not kept: a repeated one is executed again.
    """

    def __init__(self, send: Send, keep: bool = True) -> None:
        self._send, self.keep = send, keep
        self._callers: dict[int, _Caller] = {}

    def knows(self, request: Message) -> bool:
        """Return whether a request was received before and need not be decoded: `admit` answers or ignores it.

        A repeated push of an aggregation must be decoded, since its reply depends on its keys.
        """
        caller, time = self._callers.get(request.origin), request.time
        if caller is None:
            return False
        if time in caller.running or time in caller.parked:
            return True
        if callable(caller.kept.get(time)):
            return False
        return (time < caller.acked or time in caller.finished) and request.command not in READS

    def has_finished(self, origin: int, time: int) -> bool:
        """Return whether a request of that time has finished."""
        caller = self._callers.get(origin)
        return caller is not None and (time < caller.acked or time in caller.finished)

    def repeat(self, origin: int, time: int) -> bool:
        """Answer a request again, because its caller probes; return False if the caller must send it again.

        It need not be sent again if it is executing or its reply is kept.
        """
        caller = self._callers.get(origin)
        if caller is None:
            return False
        kept = caller.kept.get(time)
        if kept is not None and not callable(kept):
            self._send(origin, kept)
            return True
        return time in caller.running or time in caller.parked

    def admit(self, request: Message) -> list[Message]:
        """Take a request; return those that may start now (none: it is parked, or a repetition)."""
        caller = self._caller(request.origin, request.acked)
        time = request.time
        caller.latest = max(caller.latest, time)
        if time in caller.running:
            return []
        # The requests that it depends on may have been given up.
        if time in caller.parked:
            caller.parked[time].after = request.after
            return self._startable(caller)
        if (time < caller.acked or time in caller.finished) and request.command not in READS:
            kept = caller.kept.get(time)
            if kept is not None:
                self._send(request.origin, kept(request) if callable(kept) else kept)
            elif self.keep and time < caller.acked:
                self._send(request.origin, _forgotten(request))
            return []
        if self._may_start(caller, request):
            caller.running.add(time)
            return [request]
        caller.parked[time] = request
        return []

    def _caller(self, origin: int, acked: int) -> _Caller:
        caller = self._callers.get(origin)
        if caller is None:
            caller = self._callers[origin] = _Caller()
        if acked > caller.acked:
            caller.acked = acked
            caller.latest = max(caller.latest, acked - 1)
            if len(caller.finished) > 32 or caller.kept:
                caller.finished = {time for time in caller.finished if time >= acked}
                for time in [each for each in caller.kept if each < acked]:
                    del caller.kept[time]
        return caller

    def acknowledge(self, origin: int, acked: int) -> None:
        """Record that a caller has all replies below a time."""
        self._caller(origin, acked)

    @staticmethod
    def _may_start(caller: _Caller, request: Message) -> bool:
        return all(
            time < caller.acked or time in caller.finished for pair in request.after for time in range(*pair)
        )

    def finish(self, origin: int, time: int, kept: Kept | None = None, acked: int = 0) -> list[Message]:
        """Mark a request as finished, and keep its reply; return the parked requests that may start now."""
        caller = self._caller(origin, acked)
        caller.running.discard(time)
        caller.finished.add(time)
        caller.latest = max(caller.latest, time)
        if kept is not None and self.keep and time >= caller.acked:
            caller.kept[time] = kept
        return self._startable(caller) if caller.parked else []

    def _startable(self, caller: _Caller) -> list[Message]:
        ready = [request for request in caller.parked.values() if self._may_start(caller, request)]
        for request in ready:
            del caller.parked[request.time]
            caller.running.add(request.time)
        return ready

    def forget(self, request: Message) -> None:
        """Treat an admitted request as not received: its caller sends it again."""
        caller = self._callers.get(request.origin)
        if caller is not None:
            caller.running.discard(request.time)

    def forget_rounds(self) -> None:
        """Treat the pushes of rounds that wait for dependencies as not received: their callers have given them up."""
        for caller in self._callers.values():
            for time in [time for time, request in caller.parked.items() if request.round != NO_ROUND]:
                del caller.parked[time]

    def abandon(self) -> None:
        """Treat all unfinished requests as not received."""
        for caller in self._callers.values():
            caller.running.clear()
            caller.parked.clear()

    def latest(self, origin: int) -> int:
        """Return the highest time of a caller that was received or finished; requests above it are new."""
        caller = self._callers.get(origin)
        return -1 if caller is None else caller.latest

    def parks(self, origin: int) -> bool:
        """Return whether requests of a caller wait for dependencies."""
        caller = self._callers.get(origin)
        return caller is not None and bool(caller.parked)

    def unfinished(self) -> int:
        """Count the admitted, unfinished requests."""
        return sum(len(caller.running) + len(caller.parked) for caller in self._callers.values())

    def callers(self) -> dict[int, tuple[int, list[int], dict[int, Kept]]]:
        """Return the state of each caller: its acknowledged time, the finished times since, the kept replies."""
        return {
            origin: (caller.acked, sorted(caller.finished), dict(caller.kept))
            for origin, caller in self._callers.items()
        }

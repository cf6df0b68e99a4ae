"""Tasks: asynchronous requests with execute-after-finished dependencies (paper, section 3.4).

A task is a push, a pull, or a user function that its caller sends in one or several parts, each to one address: a
shard, whichever server holds it, or a rank. It is `(expected, received)`: finished for its caller when all parts are
answered, finished at a callee when the call has returned there and its dependencies are finished (a push into an
aggregation: when the update was applied).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from mpips.errors import JournalLost, RemoteError, WorkerLost
from mpips.process.program_line import CodeLocation
from mpips.transport.message import Kind, Message

Send = Callable[[int, Message], None]
Deliver = Callable[[int, Message], None]
Wait = Callable[["Task"], Any]


def finished(task: Task) -> Any:
    """Return the values of a finished task: the `Wait` where no event loop could finish it."""
    if task.error is not None:
        raise task.error
    if not task.done:
        raise RuntimeError(f"task {task.time} is not finished, and nothing can wait for it")
    return task.values


class Task:
    """A future: the caller's handle of a task.

    `time` orders the caller's tasks. `expected` and `received` count its parts. `values` is set by its issuer (a pull:
    its rows); `error` is set when a part failed. `handled`: the error is raised to, or handled by, the program.
    `what` and `location`: the command, and the program's line that issued it.

    >>> import numpy as np
    >>> from mpips import VectorSpec, simulate
    >>> def schedule(cluster):
    ...     w, keys = cluster.create_vector(VectorSpec("w")), np.array([3], np.uint64)
    ...     first = w.push(keys, np.ones(1))
    ...     second = w.pull(keys, after=[first])
    ...     rows = second.result()
    ...     return isinstance(first, Task), first.done, rows.tolist()
    >>> simulate(schedule, worker=lambda context: None)
    (True, True, [1.0])
    """

    __slots__ = (
        "__weakref__", "_callbacks", "_deliver", "_wait", "error", "expected", "handled", "location", "nbytes",
        "received", "time", "under_way", "values", "what",
    )  # fmt: skip

    def __init__(
        self, time: int, expected: int, deliver: Deliver | None = None, wait: Wait = finished
    ) -> None:
        self.time, self.expected, self.received = time, expected, 0
        self._wait = wait
        self.values: Any = None
        self.error: BaseException | None = None
        self.handled = False
        # Bytes of the rows that it sends.
        self.nbytes = 0
        self.what = ""
        self.location: CodeLocation | None = None
        # The addresses of parts that are queued, sent or answered.
        self.under_way: set[int] = set()
        self._deliver = deliver
        self._callbacks: list[Callable[[Task], None]] = []

    @property
    def done(self) -> bool:
        """Whether every part was answered."""
        return self.received >= self.expected

    @property
    def settled(self) -> bool:
        """Whether a wait for the task ends: it is done, or has failed with another error than `WorkerLost`.

        After the loss of a worker the other parts are still answered, and the program should continue only then.
        """
        return self.received >= self.expected or (
            self.error is not None and not isinstance(self.error, WorkerLost)
        )

    def then(self, callback: Callable[[Task], None]) -> Task:
        """Call `callback(task)` once when the task is finished, at once if it is; return the task.

        An exception of the callback is raised where messages are processed, and becomes the task's error unless it has
        one.
        """
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)
        return self

    def result(self) -> Any:
        """Wait until the task is finished; return its values: the rows of a pull, the replies to a call, else None.

        Raises:
            RemoteError: it failed on another rank.
            WorkerLost: another worker that took part in it has died.
        """
        return self._wait(self)

    def answer(self, part: int, reply: Message) -> None:
        """Take the reply to one part."""
        if reply.kind is Kind.FAILURE:
            error = remote_error(reply)
            if self.error is None or isinstance(self.error, WorkerLost):
                self.error = error
        elif self._deliver is not None and self.error is None:
            try:
                self._deliver(part, reply)
            # An error of the caller's own callback is raised where the task is waited for.
            except Exception as error:
                self.error = error
        self.received += 1
        if self.received == self.expected:
            self.finish()

    def finish(self) -> None:
        """Run all callbacks, then raise the first exception among them, since the task may never be waited for.

        A task without parts is finished by its issuer.
        """
        callbacks, self._callbacks, self._deliver = self._callbacks, [], None
        failed: Exception | None = None
        for callback in callbacks:
            try:
                callback(self)
            except Exception as error:
                failed = failed or error
        if failed is not None:
            self.error = self.error or failed
            raise failed


def remote_error(reply: Message) -> RemoteError | WorkerLost | JournalLost:
    """Return the error that a failure message describes."""
    meta = reply.meta
    if meta.get("lost"):
        return WorkerLost(str(meta["text"]))
    if meta.get("journal") == "lost":
        return JournalLost(str(meta["text"]))
    return RemoteError.from_meta(meta, reply.sender)

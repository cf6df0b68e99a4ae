"""Tasks: asynchronous requests with execute-after-finished dependencies (paper, section 3.2).

A task is a push, a pull, or a user function that its caller sends in one or several parts, each to one node. It is
`(expected, received)`: finished for its caller when the replies to all parts are in, finished at a callee when the
call has returned there and all it waits for is done (a push into an aggregation: when the update was applied).

`Tasks` is the caller's half. It numbers the parts to each node without gaps (`seq`), keeps at most `window`
of them unanswered there, sends again what stays unanswered, and forgets a task once it is finished.
A dependency on a task that has a part at the same node travels with the message, so that a push and the pull
after it are both on their way at once; any other dependency is waited for before sending.

`Inbox` is the callee's half. It lets a request start when all it depends on has finished there, starts each one exactly
once, and answers a repeated one from the reply it kept until the caller has acknowledged it.

Both are plain state machines: they are given messages and a function that sends, and never wait.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from mpips.errors import RemoteError
from mpips.message import Kind, Message
from mpips.ranges import Intervals

Send = Callable[[int, Message], None]
Deliver = Callable[[int, Message], None]
Filtered = Callable[[int, Message], Message]


def unfiltered(peer: int, message: Message) -> Message:
    """Give the message as it is: what happens to it on its way to or from `peer` where there are no filters."""
    return message


class Task:
    """What a caller holds of a task: a future.

    `time` orders the caller's tasks. `expected` and `received` count its parts. `result` is whatever its issuer
    chose to put there (a pull: its values); `error` is set when a part failed.
    """

    __slots__ = (
        "_callbacks",
        "_deliver",
        "error",
        "expected",
        "received",
        "result",
        "seqs",
        "time",
        "unsent",
    )

    def __init__(self, time: int, expected: int, deliver: Deliver | None = None) -> None:
        self.time, self.expected, self.received = time, expected, 0
        self.result: Any = None
        self.error: BaseException | None = None
        self.seqs: dict[int, list[int]] = {}  # of the parts that were sent, by node
        self.unsent: dict[int, int] = {}  # parts that were not, by node
        self._deliver = deliver
        self._callbacks: list[Callable[[Task], None]] = []

    @property
    def done(self) -> bool:
        """Whether every part was answered."""
        return self.received >= self.expected

    def then(self, callback: Callable[[Task], None]) -> Task:
        """Call `callback(task)` once when the task is finished, at once if it is; give the task.

        What it raises is raised where messages are moved, and becomes the task's error, unless that has one.
        """
        if self.done:
            callback(self)
        else:
            self._callbacks.append(callback)
        return self

    def answer(self, part: int, reply: Message) -> None:
        """Take the reply to one part."""
        if reply.kind is Kind.FAILURE:
            self.error = self.error or _remote(reply)
        elif self._deliver is not None and self.error is None:
            try:
                self._deliver(part, reply)
            except (
                Exception
            ) as error:  # a caller's own callback failed: it is raised where the task is waited for
                self.error = error
        self.received += 1
        if self.received == self.expected:
            self.finish()

    def finish(self) -> None:
        """Run all callbacks, then raise what the first failed with: the task may have no one to wait for it.

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


def _remote(reply: Message) -> RemoteError:
    meta = reply.meta
    return RemoteError(
        int(meta.get("rank", reply.sender)),
        str(meta.get("role", "?")),
        str(meta.get("host", "?")),
        str(meta.get("text", "failed")),
        str(meta.get("trace", "")),
        bool(meta.get("is_input", False)),
    )


class _Peer:
    """What a caller knows of one node that it sends to."""

    __slots__ = ("next_seq", "queue", "unanswered")

    def __init__(self) -> None:
        self.next_seq = 0
        self.unanswered: dict[int, _Part] = {}  # by seq, so in the order of sending
        self.queue: deque[_Part] = deque()


class _Part:
    """One part of a task, from its submission to its reply."""

    __slots__ = ("after", "dest", "message", "number", "sent_at", "task")

    def __init__(self, task: Task, number: int, dest: int, message: Message, after: list[Task]) -> None:
        self.task, self.number, self.dest, self.message, self.after = task, number, dest, message, after
        self.sent_at = 0.0


class Tasks:
    """The caller's half of every task of one node; see the module.

    `send(dest, message)` sends, `window` bounds the unanswered parts per node, `resend` is the time in seconds after
    which an unanswered part is sent again (None: the van loses nothing). `encode` and `decode` are the filters: each
    part and each reply passes them once, however often it is sent.
    """

    def __init__(
        self,
        send: Send,
        window: int = 64,
        resend: float | None = None,
        *,
        encode: Filtered = unfiltered,
        decode: Filtered = unfiltered,
    ) -> None:
        self._send, self._window, self.resend_after = send, window, resend
        self._encode, self._decode = encode, decode
        self._peers: dict[int, _Peer] = {}
        self._time = 0
        self.unfinished: dict[int, Task] = {}
        self.now: Callable[[], float] = lambda: 0.0

    def submit(
        self,
        parts: Sequence[tuple[int, Message]],
        deliver: Deliver | None = None,
        after: Iterable[Task] = (),
        *,
        whole: bool = False,
    ) -> Task:
        """Send a task of `parts`, each a (node, request), that starts after every task of `after` is finished.

        A part starts at its node when the parts of `after` are finished there: what a push and a pull need, since
        every key is at one node. With `whole` no part starts before all of `after` is finished everywhere.
        `deliver(part number, reply)` gets each reply as it comes in. A task without parts finishes when all
        of `after` has.
        """
        task = Task(self._time, len(parts), deliver)
        self._time += 1
        waits = [earlier for earlier in after if not earlier.done]
        if not parts:
            self._finish_after(task, waits)
            return task
        self.unfinished[task.time] = task
        task.then(self._forget)
        for dest, _ in parts:
            task.unsent[dest] = task.unsent.get(dest, 0) + 1
        for number, (dest, message) in enumerate(parts):
            message.time = task.time
            part = _Part(task, number, dest, message, waits)
            if waits and whole:
                self._hold_whole(part)
            elif waits:
                self._hold(part)
            else:
                self._enqueue(part)
        return task

    def _forget(self, task: Task) -> None:
        self.unfinished.pop(task.time, None)

    def _finish_after(self, task: Task, waits: list[Task]) -> None:
        task.expected = max(1, len(waits))

        def one(_: Task) -> None:
            task.received += 1
            if task.done:
                task.finish()

        for earlier in waits:
            earlier.then(one)
        if not waits:
            one(task)

    def _hold(self, part: _Part) -> None:
        """Enqueue `part` when each task it waits for is finished, or has all of its parts to this node under way."""
        blocking = [t for t in part.after if not t.done and t.unsent.get(part.dest, 1)]
        if not blocking:
            self._enqueue(part)
            return
        blocking[0].then(lambda _: self._hold(part))

    def _hold_whole(self, part: _Part) -> None:
        unfinished = next((task for task in part.after if not task.done), None)
        if unfinished is None:
            self._enqueue(part)
        else:
            unfinished.then(lambda _: self._hold_whole(part))

    def _enqueue(self, part: _Part) -> None:
        part.task.unsent[part.dest] -= 1  # the queue keeps its order, so who is in it may be depended on
        if part.task.error is not None:
            self._drop(part)
            return
        peer = self._peers.get(part.dest)
        if peer is None:
            peer = self._peers[part.dest] = _Peer()
        if peer.queue or len(peer.unanswered) >= self._window:
            peer.queue.append(part)
        else:
            self._transmit(peer, part)

    def _transmit(self, peer: _Peer, part: _Part) -> None:
        message, dest = part.message, part.dest
        message.seq = seq = peer.next_seq
        peer.next_seq = seq + 1
        message.after = tuple(
            (s, s + 1) for t in part.after if not t.done for s in t.seqs.get(dest, ()) if s in peer.unanswered
        )
        part.after = []
        part.task.seqs.setdefault(dest, []).append(seq)
        peer.unanswered[seq] = part
        try:
            part.message = self._encode(dest, message)
            self._dispatch(peer, part)
        except Exception as error:  # it cannot travel: that is raised where the task is waited for
            del peer.unanswered[seq]
            peer.next_seq = seq
            part.task.seqs[dest].pop()
            part.task.error = part.task.error or error
            self._drop(part)

    def _dispatch(self, peer: _Peer, part: _Part) -> None:
        part.message.acked = next(iter(peer.unanswered))
        if self.resend_after is not None:
            part.sent_at = self.now()
        self._send(part.dest, part.message)

    def _drop(self, part: _Part) -> None:
        """Count a part that will not be sent, its task having failed, as answered."""
        task = part.task
        task.received += 1
        if task.done:
            task.finish()

    def answer(self, reply: Message) -> None:
        """Take a reply; one that was already taken is ignored."""
        peer = self._peers.get(reply.sender)
        part = peer.unanswered.pop(reply.seq, None) if peer else None
        if peer is None or part is None:
            return
        try:
            part.task.answer(part.number, self._decode(reply.sender, reply))
        finally:  # a callback's error must not keep back what waits for the window
            self._refill(peer)

    def _refill(self, peer: _Peer) -> None:
        while peer.queue and len(peer.unanswered) < self._window:
            waiting = peer.queue.popleft()
            if waiting.task.error is not None:  # its caller has been told, and may use the arrays again
                self._drop(waiting)
            else:
                self._transmit(peer, waiting)

    def resend(self) -> int:
        """Send again every part that has been unanswered for too long; give how many."""
        if self.resend_after is None:
            return 0
        late, count = self.now() - self.resend_after, 0
        for peer in self._peers.values():
            for part in list(peer.unanswered.values()):
                if part.sent_at <= late:
                    self._dispatch(peer, part)
                    count += 1
        return count

    def outstanding(self, dest: int) -> int:
        """Count the unanswered parts at `dest`."""
        peer = self._peers.get(dest)
        return len(peer.unanswered) if peer else 0


class _Sender:
    """What a callee knows of one node that sends to it."""

    __slots__ = ("acked", "finished", "parked", "replies", "running")

    def __init__(self) -> None:
        self.acked = 0
        self.finished = Intervals()
        self.running: set[int] = set()
        self.parked: dict[int, Message] = {}
        self.replies: dict[int, Message] = {}


class Inbox:
    """The callee's half: which requests may start, which are done; see the module.

    Its memory is bounded by the callers' windows: finished numbers coalesce, replies go once they are acknowledged.
    """

    def __init__(
        self,
        send: Send,
        keep_replies: bool = True,
        *,
        encode: Filtered = unfiltered,
        decode: Filtered = unfiltered,
    ) -> None:
        self._send, self._keep = send, keep_replies
        self._encode, self._decode = encode, decode
        self._senders: dict[int, _Sender] = {}

    def admit(self, request: Message) -> list[Message]:
        """Take a request; give those that may start now (none: it is parked, or is a repetition)."""
        state = self._senders.get(request.sender)
        if state is None:
            state = self._senders[request.sender] = _Sender()
        if request.acked > state.acked:
            state.acked = request.acked
            for seq in [s for s in state.replies if s < request.acked]:
                del state.replies[seq]
        seq = request.seq
        if seq in state.finished:
            kept = state.replies.get(seq)
            if kept is not None:
                self._send(request.sender, kept)
            return []
        if seq in state.running or seq in state.parked:
            return []
        request = self._decode(request.sender, request)
        if all(state.finished.covers(begin, end) for begin, end in request.after):
            state.running.add(seq)
            return [request]
        state.parked[seq] = request
        return []

    def finish(self, request: Message, reply: Message) -> list[Message]:
        """Mark a request as finished and send its reply; give the parked requests that may start now."""
        state = self._senders[request.sender]
        seq = request.seq
        state.running.discard(seq)
        state.finished.add(seq)
        reply.seq, reply.time, reply.namespace = seq, request.time, request.namespace
        reply = self._encode(request.sender, reply)
        if self._keep:
            state.replies[seq] = reply
        self._send(request.sender, reply)
        if not state.parked:
            return []
        ready = [m for m in state.parked.values() if all(state.finished.covers(*pair) for pair in m.after)]
        for message in ready:
            del state.parked[message.seq]
            state.running.add(message.seq)
        return ready

    def unfinished(self) -> int:
        """Count the requests that were admitted and are not finished."""
        return sum(len(s.running) + len(s.parked) for s in self._senders.values())

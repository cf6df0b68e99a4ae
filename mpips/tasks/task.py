"""Tasks: asynchronous requests with execute-after-finished dependencies (paper, section 3.4).

A task is a push, a pull, or a user function that its caller sends in one or several parts, each to one address: a
shard, whichever server holds it, or a rank. It is `(expected, received)`: finished for its caller when all parts are
answered, finished at a callee when the call has returned there and its dependencies are finished (a push into an
aggregation: when the update was applied).

`Tasks` is the caller's half (the callee's is `mpips.tasks.request_dedup`). It keeps at most `window` unanswered parts
per address, sends a part again if it was lost or its address has moved to another rank, and forgets finished tasks. A
dependency on a task that has a part at the same address is sent with the message, so that a push and the pull after it
are in flight together; for any other dependency, the part is held back until it is finished.

A push into an aggregation may be answered ahead: its task is finished, so that its values can be used, but they are
not yet durable. The part is kept, and sent again to a new holder of the shard, until an ACKNOWLEDGED message says that
all members of the chain have it. Parts that are sent to that shard meanwhile depend on it.

A part is identified by its task's caller and time: when a caller dies, another rank can take over and issue the same
tasks at the same times (`recall`).

It is a state machine: it gets messages, and functions that send and that wait.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from typing import Any, Protocol

from numpy.typing import NDArray

from mpips.errors import JournalLost, RemoteError, WorkerLost
from mpips.process.program_line import CodeLocation
from mpips.tasks.retransmission import Budget, Timer
from mpips.transport.message import Command, Kind, Message

Send = Callable[[int, Message], None]
Deliver = Callable[[int, Message], None]
Filtered = Callable[[int, Message], Message]
Wait = Callable[["Task"], Any]

AHEAD = 1
"""In `acked` of a reply: the result is valid but not yet durable; an ACKNOWLEDGED message follows (`acknowledge`)."""
MOST_NAMED = 256
"""Parts that a probe names at most, the oldest first."""
JUMP = 1 << 40
"""The gap in a caller's times when it discards what it did before: see `Tasks.leap`."""


def unfiltered(peer: int, message: Message) -> Message:
    """Return the message unchanged: the encoding for `peer` where there are no filters."""
    return message


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
    its rows); `error` is set when a part failed. `heeded`: the error is raised to, or handled by, the program.
    `what` and `location`: the command, and the program's line that issued it.
    """

    __slots__ = (
        "_callbacks",
        "_deliver",
        "_wait",
        "error",
        "expected",
        "heeded",
        "location",
        "nbytes",
        "received",
        "time",
        "under_way",
        "values",
        "what",
    )

    def __init__(
        self, time: int, expected: int, deliver: Deliver | None = None, wait: Wait = finished
    ) -> None:
        self.time, self.expected, self.received = time, expected, 0
        self._wait = wait
        self.values: Any = None
        self.error: BaseException | None = None
        self.heeded = False
        self.nbytes = 0  # of rows that it sends
        self.what = ""
        self.location: CodeLocation | None = None
        # the addresses of parts that are queued, sent or answered
        self.under_way: set[int] = set()
        self._deliver = deliver
        self._callbacks: list[Callable[[Task], None]] = []

    @property
    def done(self) -> bool:
        """Whether every part was answered."""
        return self.received >= self.expected

    @property
    def settled(self) -> bool:
        """Whether the wait for it ends: it is done, or has failed with another error than `WorkerLost`.

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
            except (
                Exception
            ) as error:  # a caller's own callback failed: it is raised where the task is waited for
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


class _Peer:
    """A caller's state of one address."""

    __slots__ = ("ahead", "queue", "timer", "unanswered")

    def __init__(self, timer: Timer | None) -> None:
        # None where no messages are lost
        self.timer = timer
        # by time: parts that were answered ahead
        self.ahead: dict[int, _Part] = {}
        # by time, in the order of sending
        self.unanswered: dict[int, _Part] = {}
        self.queue: deque[_Part] = deque()

    def waiting(self) -> list[_Part]:
        """Return the parts without a final answer, in the order of sending."""
        return [*self.ahead.values(), *self.unanswered.values()]


class _Part:
    """One part of a task, from its submission to its reply."""

    __slots__ = (
        "_message",
        "_request",
        "address",
        "after",
        "number",
        "sent_at",
        "slot",
        "sure",
        "task",
    )

    def __init__(
        self,
        task: Task,
        number: int,
        address: int,
        message: Message | None,
        after: list[Task],
        request: Request | None = None,
    ) -> None:
        self.task, self.number, self.address, self._message, self.after = (
            task,
            number,
            address,
            message,
            after,
        )
        self._request = request
        # of the client fast path, if it was sent there
        self.slot = -1
        self.sent_at = 0.0
        # it was acknowledged before it was answered
        self.sure = False

    @property
    def command(self) -> Command:
        """The command of the part."""
        return self._message.command if self._request is None else self._request.command  # type: ignore[union-attr]

    @property
    def message(self) -> Message:
        """The request as a message; for a part of the fast path it is made on demand."""
        if self._message is None:
            assert self._request is not None
            self._message = self._request.make(self.number)
            stamp(self._message, self.task.time, self.address)
        return self._message

    @message.setter
    def message(self, message: Message) -> None:
        self._message = message


def stamp(message: Message, time: int, address: int) -> None:
    """Set the fields of a request that identify its part."""
    message.time = time
    if address < 0:
        message.shard = ~address


class Request(Protocol):
    """A task whose parts may be sent by the client fast path."""

    @property
    def command(self) -> Command:
        """Its command."""

    @property
    def addresses(self) -> Sequence[int]:
        """The addresses of its parts."""

    def send(self, number: int, time: int, acked: int) -> int:
        """Send a part by the client fast path; return its slot, -1 if it was not sent."""

    def make(self, number: int) -> Message:
        """Return the message of a part."""

    def __call__(self, number: int, reply: Message, /) -> None:
        """Take the reply to a part, if it is a message."""


class Tasks:
    """The caller's half of all tasks of one node; see the module.

    `origin` identifies the caller, `send(address, message)` sends, `window` bounds the unanswered parts per address,
    `timer` makes retransmission timers (None: the van loses no messages; `mpips.tasks.retransmission`). An address is a
    rank, or ~shard. `encode` applies the filters, once to each part, however often it is sent. `withdraw(slot)` frees a
    slot of the client fast path, whose request is then answered by a message. `wait(task)` is what `Task.result` does.
    """

    def __init__(
        self,
        send: Send,
        window: int = 64,
        *,
        origin: int = -1,
        encode: Filtered = unfiltered,
        withdraw: Callable[[int], None] = lambda slot: None,
        timer: Callable[[], Timer | None] = lambda: None,
        again: Counter[str] | None = None,
        wait: Wait = finished,
    ) -> None:
        self._withdraw, self._timer, self._budget = withdraw, timer, Budget()
        # by slot of the client fast path
        self._asked: dict[int, _Part] = {}
        self._send, self._window, self.origin, self._wait = send, window, origin, wait
        self._encode = encode
        self._peers: dict[int, _Peer] = {}
        self._time = 0
        self.unfinished: dict[int, Task] = {}
        self.nbytes = 0
        """Bytes of rows that unfinished tasks send."""
        self.failed: list[Task] = []
        """Failed tasks whose error was not handled when they failed; see `unheeded`."""
        self.now: Callable[[], float] = lambda: 0.0
        self.lossy = timer() is not None
        self.stamps = self.lossy
        """Whether the time of each part's last send is recorded."""
        self.watch: Callable[[_Part], None] | None = None
        """Callback for each answered part."""
        self.stable: Callable[[], int] | None = None  # the time up to which a successor knows all replies
        self.noted: Callable[[int, Message], None] | None = (
            None  # is told each reply that counts, and its address
        )
        self.heard: Callable[[int, int, Message, bool], None] | None = None
        """Callback for each accepted reply: its address and time, the reply, and whether the part was given up."""
        self.recalled: dict[tuple[int, int], Message] = {}
        self.echoes: deque[Message] = deque()
        self.ahead = 0
        """Parts that were answered ahead and are not acknowledged yet."""
        # addresses of parts that were answered ahead since `newly_ahead`
        self._fresh_ahead: set[int] = set()
        self.again: Counter[str] = Counter() if again is None else again
        """Parts that were sent again, by cause: "lost", "moved", "workers" and "keys"."""

    def recall(self, replies: Mapping[tuple[int, int], Message]) -> None:
        """Take the replies, by (time, address), that this caller received before, on another rank.

        The parts that they answer are not sent: their replies are appended to `echoes`, to be passed to `answer`.
        """
        self.recalled = dict(replies)

    def leap(self) -> None:
        """Continue at unused times, so that earlier requests of the caller cannot be confused with later ones."""
        self._time = (self._time // JUMP + 1) * JUMP

    @property
    def issued(self) -> int:
        """Count the tasks so far, without the gaps of `leap`."""
        return self._time % JUMP

    @property
    def acked(self) -> int:
        """Return the time below which this caller has all replies for good."""
        low = next(iter(self.unfinished), self._time)
        if self.ahead:
            low = min(low, *(min(peer.ahead) for peer in self._peers.values() if peer.ahead))
        return low if self.stable is None else min(low, self.stable())

    def submit(
        self,
        parts: Sequence[tuple[int, Message]],
        deliver: Deliver | None = None,
        after: Iterable[Task] = (),
        *,
        whole: bool = False,
    ) -> Task:
        """Send a task of `parts`, each an (address, request), that starts after every task of `after` is finished.

        Each part has an address of its own. It starts there when the parts of `after` at that address are finished,
        which suffices for pushes and pulls, since every key is at one address. With `whole`, no part starts before all
        of `after` is finished everywhere. `deliver(part number, reply)` gets each reply. A task without parts finishes
        when all of `after` has.
        """
        task = Task(self._time, len(parts), deliver, self._wait)
        self._time += 1
        waits = [earlier for earlier in after if not earlier.done]
        if not parts:
            self._finish_after(task, waits)
            return task
        self.unfinished[task.time] = task
        task.then(self._forget)
        for number, (address, message) in enumerate(parts):
            message.origin = self.origin
            stamp(message, task.time, address)
            part = _Part(task, number, address, message, waits)
            if waits and whole:
                self._hold_whole(part)
            elif waits:
                self._hold(part)
            else:
                self._enqueue(part)
        return task

    @property
    def direct(self) -> bool:
        """Whether parts may use the client fast path: there are no filters, timers or observers."""
        return not self.lossy and self.noted is None and not self.recalled

    def ask(self, request: Request) -> Task:
        """Send a task without dependencies, each part by the client fast path if possible; see `direct`."""
        addresses = request.addresses
        task = Task(self._time, len(addresses), request, self._wait)
        time, acked = self._time, self.acked
        self._time += 1
        self.unfinished[time] = task
        task.then(self._forget)
        for number, address in enumerate(addresses):
            peer = self._peers.get(address)
            if peer is None:
                peer = self._peers[address] = _Peer(self._timer())
            part = _Part(task, number, address, None, [], request)
            if peer.queue or peer.ahead or len(peer.unanswered) >= self._window:
                self._enqueue(part)
                continue
            task.under_way.add(address)
            slot = request.send(number, time, acked)
            if slot < 0:
                self._transmit(peer, part)
            else:
                part.slot = slot
                self._asked[slot] = peer.unanswered[time] = part
                if self.stamps:
                    part.sent_at = self.now()
        return task

    def asked_at(self, slot: int) -> tuple[int, int]:
        """Return address and time of the request in a slot."""
        part = self._asked[slot]
        return part.address, part.task.time

    def answered(self, slot: int) -> None:
        """Take the answer to the request in a slot; its values are in place."""
        part = self._asked.pop(slot)
        peer, task = self._peers[part.address], part.task
        del peer.unanswered[task.time]
        part.slot = -1
        if self.watch is not None:
            self.watch(part)
        task.received += 1
        try:
            if task.received == task.expected:
                task.finish()
        finally:
            if peer.queue:
                self._refill(peer)

    def _leave_desk(self, part: _Part) -> None:
        """Free the slot of a part, which is then answered by a message."""
        if part.slot >= 0:
            del self._asked[part.slot]
            self._withdraw(part.slot)
            part.slot = -1

    def weigh(self, task: Task, nbytes: int) -> None:
        """Note how many bytes of rows a task sends that was just issued."""
        if not task.done:
            task.nbytes = nbytes
            self.nbytes += nbytes

    def _forget(self, task: Task) -> None:
        self.unfinished.pop(task.time, None)
        self.nbytes -= task.nbytes
        if task.error is not None and not task.heeded:
            self.failed = [each for each in self.failed if not each.heeded]
            self.failed.append(task)

    def unheeded(self, since: int) -> list[Task]:
        """List the tasks issued at `since` or later that are unfinished or failed, and not handled by the program."""
        return [
            task
            for task in (*self.failed, *self.unfinished.values())
            if task.time >= since and not task.heeded
        ]

    @property
    def queued(self) -> int:
        """Count the parts that are sent once others have been answered."""
        if len(self.unfinished) <= self._window:  # a task has one part at an address
            return 0
        return sum(len(peer.queue) for peer in self._peers.values())

    def unanswered(self, task: Task) -> list[int]:
        """List the addresses that have not answered a part of a task, sent or queued."""
        return [
            address
            for address, peer in self._peers.items()
            if task.time in peer.unanswered or any(part.task is task for part in peer.queue)
        ]

    @property
    def time(self) -> int:
        """The time of the next task."""
        return self._time

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
        """Enqueue `part` when each of its dependencies is finished, or has a part to this address queued or sent.

        A dependency without a part at this address must be finished, since the callee cannot tell when it is.
        """
        blocking = [t for t in part.after if not t.done and part.address not in t.under_way]
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
        # the queue keeps its order, so a queued part can be a dependency
        part.task.under_way.add(part.address)
        if part.task.error is not None:
            self._drop(part)
            return
        peer = self._peers.get(part.address)
        if peer is None:
            peer = self._peers[part.address] = _Peer(self._timer())
        if peer.queue or len(peer.unanswered) >= self._window:
            peer.queue.append(part)
        else:
            self._transmit(peer, part)

    def _transmit(self, peer: _Peer, part: _Part) -> None:
        message, time = part.message, part.task.time
        if part.after or peer.ahead:
            before = [t.time for t in part.after if t.time in peer.unanswered]
            message.after = tuple((each, each + 1) for each in (*before, *peer.ahead))
            part.after = []
        peer.unanswered[time] = part
        if self.recalled:
            known = self.recalled.pop((time, part.address), None)
            if known is not None:
                self.echoes.append(known)
                return
        try:
            part.message = self._encode(part.address, message)
            self._dispatch(part)
        # it cannot be encoded: the error is raised where the task is waited for
        except Exception as error:
            del peer.unanswered[time]
            part.task.error = part.task.error or error
            self._drop(part)

    def _dispatch(self, part: _Part) -> None:
        self._leave_desk(part)
        part.message.acked = self.acked
        if self.stamps:
            part.sent_at = self.now()
        self._budget.earn()
        self._send(part.address, part.message)

    def _drop(self, part: _Part) -> None:
        """Count a part that is not sent, because its task has failed, as answered."""
        task = part.task
        task.received += 1
        if task.done:
            task.finish()

    def answer(self, reply: Message) -> None:
        """Take a reply; a repeated one is ignored."""
        address = ~reply.shard if reply.shard >= 0 else reply.sender
        peer = self._peers.get(address)
        if peer is None:
            return
        part = peer.unanswered.pop(reply.time, None)
        if part is None:
            if reply.acked != AHEAD:
                self._acknowledged(peer, reply.time)
            return
        self._leave_desk(part)
        if peer.timer is not None:
            peer.timer.heard(self.now())
        if self.watch is not None:
            self.watch(part)
        if self.heard is not None:
            self.heard(address, reply.time, reply, False)
        if reply.acked == AHEAD and not part.sure:
            self._keep_ahead(peer, part)
        try:
            if self.noted is not None:
                self.noted(address, reply)
            part.task.answer(part.number, reply)
        # a callback's error must not hold back the parts that wait for the window
        finally:
            self._refill(peer)

    def _keep_ahead(self, peer: _Peer, part: _Part) -> None:
        """Keep a part that was answered ahead, with copies of its arrays, since its caller may reuse them."""
        message = part.message
        if message.keys is not None and message.keys.flags.writeable:
            message.keys = message.keys.copy()
        if message.withheld is not None and message.withheld.flags.writeable:
            message.withheld = message.withheld.copy()
        if message.values is not None:
            message.values = message.values.copy()
        peer.ahead[part.task.time] = part
        self.ahead += 1
        self._fresh_ahead.add(part.address)

    def send_keys(self, reply: Message) -> int:
        """Send a part again with its keys, whose signature the callee has not cached; return the keys' bytes."""
        peer = self._peers.get(~reply.shard)
        part = peer and (peer.unanswered.get(reply.time) or peer.ahead.get(reply.time))
        if not part:
            return 0
        message, sent = part.message, 0
        if message.withheld is not None:
            message.keys, message.withheld = message.withheld, None
            sent = message.keys.nbytes
        self._dispatch(part)
        self.again["keys"] += 1
        return sent

    def place(self, reply: Message) -> NDArray[Any] | None:
        """Return, once, the array that receives the values of a reply; None if there is none, or its type differs."""
        peer = self._peers.get(~reply.shard)
        part = peer.unanswered.get(reply.time) if peer else None
        if part is None or (place := part.message.place) is None:
            return None
        part.message.place = None
        values = reply.values
        return (
            place
            if values is not None and (place.shape, place.dtype) == (values.shape, values.dtype)
            else None
        )

    def acknowledge(self, address: int, time: int) -> None:
        """Record that all members of the chain have a part that was answered ahead."""
        peer = self._peers.get(address)
        if peer is None:
            return
        if time in peer.unanswered:
            peer.unanswered[time].sure = True
        self._acknowledged(peer, time)

    def _acknowledged(self, peer: _Peer, time: int) -> None:
        if peer.ahead.pop(time, None) is not None:
            self.ahead -= 1

    def newly_ahead(self) -> list[tuple[int, int]]:
        """Return (address, latest time) of parts answered ahead, for addresses with new ones since the last call.

        After an address has moved to another rank, all of its parts count as new.
        """
        fresh, self._fresh_ahead = self._fresh_ahead, set()
        return [
            (address, max(self._peers[address].ahead))
            for address in sorted(fresh)
            if self._peers[address].ahead
        ]

    def _refill(self, peer: _Peer) -> None:
        while peer.queue and len(peer.unanswered) < self._window:
            waiting = peer.queue.popleft()
            # its caller knows of the error, and may reuse the arrays
            if waiting.task.error is not None:
                self._drop(waiting)
            else:
                self._transmit(peer, waiting)

    def probe(self) -> None:
        """Send a probe to each address whose timer has expired."""
        now = self.now()
        for address, peer in self._peers.items():
            if peer.timer is None:
                return
            if not peer.unanswered and not peer.ahead:
                peer.timer.stop()
            elif peer.timer.expired(now):
                self._budget.earn(1.0)
                times = [(time, 1) for time in peer.ahead] + [(time, 0) for time in peer.unanswered]
                probe = Message(Kind.PROBE, Command.CALL, origin=self.origin, acked=self.acked)
                probe.after = tuple(times[:MOST_NAMED])
                stamp(probe, 0, address)
                self._send(address, probe)

    def missing(self, told: Message) -> None:
        """Send again, within the budget, the parts that a callee has not received."""
        address = ~told.shard if told.shard >= 0 else told.sender
        peer = self._peers.get(address)
        if peer is None:
            return
        if peer.timer is not None:
            peer.timer.answered(self.now())
            if told.after:
                peer.timer.heard(self.now())
        parts = [peer.unanswered.get(time) or peer.ahead.get(time) for time, _ in told.after]
        self._again((part for part in parts if part is not None and self._budget.spend()), "lost")

    def redirect(self, addresses: Collection[int], cause: str) -> int:
        """Send again the unanswered parts of addresses that have moved to another rank; return their number."""
        peers = [self._peers[address] for address in addresses if address in self._peers]
        self._fresh_ahead.update(address for address in addresses if address in self._peers)
        return self._again((part for peer in peers for part in peer.waiting()), cause)

    def _again(self, parts: Iterable[_Part], cause: str) -> int:
        count = 0
        for part in list(parts):
            # the new callee may not know of requests that have finished since
            if part.message.after:
                peer = self._peers[part.address]
                part.message.after = tuple(
                    pair for pair in part.message.after if pair[0] in peer.unanswered or pair[0] in peer.ahead
                )
            self._dispatch(part)
            count += 1
        if count:
            self.again[cause] += count
        return count

    def give_up(self, why: Message, which: Callable[[int, Message], bool]) -> None:
        """Take `why`, a failure, as the reply to each unanswered or queued part with `which(address, request)`."""
        for address, peer in self._peers.items():
            for part in [each for each in peer.queue if which(address, each.message)]:
                peer.queue.remove(part)
                self._fail(address, part, why)
            for part in [each for each in reversed(peer.unanswered.values()) if which(address, each.message)]:
                if part.message.restore is not None:
                    part.message.restore()
            for time, part in list(peer.unanswered.items()):
                if which(address, part.message) and peer.unanswered.pop(time, None) is not None:
                    self._fail(address, part, why)
            for time, part in list(peer.ahead.items()):
                if which(address, part.message):
                    self._acknowledged(peer, time)
            self._refill(peer)

    def _fail(self, address: int, part: _Part, why: Message) -> None:
        self._leave_desk(part)
        if self.heard is not None:
            self.heard(address, part.task.time, why, True)
        if self.noted is not None:
            reply = copy(why)
            reply.time = part.task.time
            self.noted(address, reply)
        part.task.answer(part.number, why)

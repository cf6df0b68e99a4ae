"""The caller's side of tasks: sends their parts, and takes the replies (the callee's side is `mpips.tasks.callee`).

`Tasks` keeps at most `window` unanswered parts per address, sends a part again if it was lost or its address has moved
to another rank, and forgets finished tasks. A dependency on a task that has a part at the same address is sent with the
message, so that a push and the pull after it are in flight together; for any other dependency, the part is held back
until it is finished.

A part is identified by its task's caller and time: when a caller dies, another rank can take over and issue the same
tasks at the same times (`take_replies`).

It is a state machine: it gets messages, and functions that send and that wait. The module is long because all its
transitions change the same tables of parts.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from typing import Any

from numpy.typing import NDArray

from mpips.forked import check_not_forked
from mpips.tasks.ahead import AHEAD, Ahead
from mpips.tasks.part import Part, Peer, Request, stamp
from mpips.tasks.retransmission import Budget, Timer
from mpips.tasks.task import Deliver, Send, Task, Wait, finished
from mpips.transport.message import Command, Kind, Message

Encode = Callable[[int, Message], Message]

MOST_NAMED = 256
"""Parts that a probe names at most, the oldest first."""
JUMP = 1 << 40
"""The gap in a caller's times when it discards its earlier requests: see `Tasks.skip_times`."""


def _address(reply: Message) -> int:
    """Return the address that a reply comes from."""
    return ~reply.shard if reply.shard >= 0 else reply.sender


def unfiltered(peer: int, message: Message) -> Message:
    """Return the message unchanged: the encoding for `peer` where there are no filters."""
    return message


class Tasks:
    """The caller's side of all tasks of one node; see the module.

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
        encode: Encode = unfiltered,
        withdraw: Callable[[int], None] = lambda slot: None,
        timer: Callable[[], Timer | None] = lambda: None,
        again: Counter[str] | None = None,
        wait: Wait = finished,
    ) -> None:
        self._withdraw, self._timer, self._budget = withdraw, timer, Budget()
        # By slot of the client fast path.
        self._asked: dict[int, Part] = {}
        self._send, self._window, self.origin, self._wait = send, window, origin, wait
        self._encode = encode
        self._peers: dict[int, Peer] = {}
        self._time = 0
        self.unfinished: dict[int, Task] = {}
        self.nbytes = 0
        """Bytes of rows that unfinished tasks send."""
        self.failed: list[Task] = []
        """Failed tasks whose error was not handled when they failed; see `unhandled`."""
        self.now: Callable[[], float] = lambda: 0.0
        self.lossy = timer() is not None
        self.stamps = self.lossy
        """Whether the time of each part's last send is recorded."""
        self.on_answered: Callable[[Part], None] | None = None
        """Callback for each answered part."""
        self.stable: Callable[[], int] | None = None
        """Returns the time below which the leader's successors have all replies."""
        self.on_journaled: Callable[[int, Message], None] | None = None
        """Callback of the journal for each accepted reply, with its address."""
        self.on_reply: Callable[[int, int, Message, bool], None] | None = None
        """Callback for each accepted reply: its address and time, the reply, and whether the part was given up."""
        self.known_replies: dict[tuple[int, int], Message] = {}
        """By (time, address): the replies of `take_replies` to parts that are not issued yet."""
        self.due_replies: deque[Message] = deque()
        """Those of them whose part was issued: to be passed to `answer`."""
        self.ahead = Ahead(self._peers)
        self.again: Counter[str] = Counter() if again is None else again
        """Parts that were sent again, by cause: "lost", "moved", "workers" and "keys"."""

    def take_replies(self, replies: Mapping[tuple[int, int], Message]) -> None:
        """Take the replies, by (time, address), that this caller received before, on another rank.

        The parts that they answer are not sent: their replies are appended to `due_replies`, to be passed to `answer`.
        """
        self.known_replies = dict(replies)

    def skip_times(self) -> None:
        """Continue at unused times, so that earlier requests of the caller cannot be confused with later ones."""
        self._time = (self._time // JUMP + 1) * JUMP

    def continue_at(self, time: int) -> None:
        """Give the next task this time: all tasks before it are finished, some of them on another rank."""
        self._time = time

    @property
    def issued(self) -> int:
        """Count the tasks so far, without the gaps of `skip_times`."""
        return self._time % JUMP

    @property
    def acked(self) -> int:
        """Return the time below which this caller has all replies for good."""
        low = next(iter(self.unfinished), self._time)
        if self.ahead.count:
            low = min(low, self.ahead.oldest())
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
        check_not_forked()
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
            part = Part(task, number, address, message, waits)
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
        return not self.lossy and self.on_journaled is None and not self.known_replies

    def ask(self, request: Request) -> Task:
        """Send a task without dependencies, by the client fast path if possible; see `direct`."""
        check_not_forked()
        addresses, time = request.addresses, self._time
        # A task has one part at an address: so none is queued there as long as so few tasks are unfinished.
        takes = len(self.unfinished) < self._window and not (self.ahead.count and self._is_ahead(addresses))
        slots = request.send(time, self.acked) if takes else ()
        # From here on the receivers may be at work.
        task = self.unfinished[time] = Task(time, len(addresses), request, self._wait)
        self._time += 1
        task.then(self._forget)
        for number, address in enumerate(addresses):
            part = Part(task, number, address, None, [], request)
            if not slots or slots[number] < 0:
                self._enqueue(part)
                continue
            peer = self._peers.get(address) or self._peer(address)
            task.under_way.add(address)
            part.slot = slots[number]
            self._asked[part.slot] = peer.unanswered[time] = part
            if self.stamps:
                part.sent_at = self.now()
        return task

    def _is_ahead(self, addresses: Iterable[int]) -> bool:
        """Return whether parts at some of the addresses were answered ahead: further ones there depend on them."""
        return any(address in self._peers and self._peers[address].ahead for address in addresses)

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
        if self.on_answered is not None:
            self.on_answered(part)
        task.received += 1
        try:
            if task.received == task.expected:
                task.finish()
        finally:
            if peer.queue:
                self._refill(peer)

    def withdraw(self, task: Task | None = None) -> None:
        """Free the slots of all parts, or of those of a task, which are then answered by messages, if at all."""
        for part in list(self._asked.values()):
            if task is None or part.task is task:
                self._leave_fast_path(part)

    def _leave_fast_path(self, part: Part) -> None:
        """Free the slot of a part, which is then answered by a message."""
        if part.slot >= 0:
            del self._asked[part.slot]
            self._withdraw(part.slot)
            part.slot = -1

    def count_bytes(self, task: Task, nbytes: int) -> None:
        """Record the bytes of rows that a new task sends."""
        if not task.done:
            task.nbytes = nbytes
            self.nbytes += nbytes

    def _forget(self, task: Task) -> None:
        self.unfinished.pop(task.time, None)
        self.nbytes -= task.nbytes
        if task.error is not None and not task.handled:
            self.failed = [each for each in self.failed if not each.handled]
            self.failed.append(task)

    def unhandled(self, since: int) -> list[Task]:
        """List the tasks issued at `since` or later that are unfinished or failed, and not handled by the program."""
        return [
            task
            for task in (*self.failed, *self.unfinished.values())
            if task.time >= since and not task.handled
        ]

    @property
    def queued(self) -> int:
        """Count the parts that are sent once others have been answered."""
        if len(self.unfinished) <= self._window:
            # A task has one part at an address.
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

    def _hold(self, part: Part) -> None:
        """Enqueue `part` when each of its dependencies is finished, or has a part to this address queued or sent.

        A dependency without a part at this address must be finished, since the callee cannot tell when it is.
        """
        blocking = [t for t in part.after if not t.done and part.address not in t.under_way]
        if not blocking:
            self._enqueue(part)
            return
        blocking[0].then(lambda _: self._hold(part))

    def _hold_whole(self, part: Part) -> None:
        unfinished = next((task for task in part.after if not task.done), None)
        if unfinished is None:
            self._enqueue(part)
        else:
            unfinished.then(lambda _: self._hold_whole(part))

    def _peer(self, address: int) -> Peer:
        """Return the state of an address, made when it is first used."""
        peer = self._peers.get(address)
        if peer is None:
            peer = self._peers[address] = Peer(self._timer())
        return peer

    def _enqueue(self, part: Part) -> None:
        # The queue keeps its order, so a queued part can be a dependency.
        part.task.under_way.add(part.address)
        if part.task.error is not None:
            self._drop(part)
            return
        peer = self._peer(part.address)
        if peer.queue or len(peer.unanswered) >= self._window:
            peer.queue.append(part)
        else:
            self._transmit(peer, part)

    def _transmit(self, peer: Peer, part: Part) -> None:
        message, time = part.message, part.task.time
        if part.after or peer.ahead:
            before = [t.time for t in part.after if t.time in peer.unanswered]
            message.after = tuple([(each, each + 1) for each in (*before, *peer.ahead)])
            part.after = []
        peer.unanswered[time] = part
        if self.known_replies:
            known = self.known_replies.pop((time, part.address), None)
            if known is not None:
                self.due_replies.append(known)
                return
        try:
            part.message = self._encode(part.address, message)
            self._dispatch(part)
        except Exception as error:
            # It cannot be encoded: the wait for the task raises the error.
            del peer.unanswered[time]
            part.task.error = part.task.error or error
            self._drop(part)

    def _dispatch(self, part: Part) -> None:
        self._leave_fast_path(part)
        part.message.acked = self.acked
        if self.stamps:
            part.sent_at = self.now()
        self._budget.earn()
        self._send(part.address, part.message)

    def _drop(self, part: Part) -> None:
        """Count a part that is not sent, because its task has failed, as answered."""
        task = part.task
        task.received += 1
        if task.done:
            task.finish()

    def answer(self, reply: Message) -> None:
        """Take a reply; a repeated one is ignored."""
        address = _address(reply)
        peer = self._peers.get(address)
        if peer is None:
            return
        part = peer.unanswered.pop(reply.time, None)
        if part is None:
            if reply.acked != AHEAD:
                self.ahead.drop(peer, reply.time)
            return
        self._leave_fast_path(part)
        if peer.timer is not None:
            peer.timer.heard(self.now())
        if self.on_answered is not None:
            self.on_answered(part)
        if self.on_reply is not None:
            self.on_reply(address, reply.time, reply, False)
        if reply.acked == AHEAD and not part.acknowledged:
            self.ahead.keep(peer, part)
        try:
            if self.on_journaled is not None:
                self.on_journaled(address, reply)
            part.task.answer(part.number, reply)
        finally:
            # An error of a callback must not delay the parts that wait for the window.
            self._refill(peer)

    def send_keys(self, reply: Message) -> int:
        """Send a part again with its keys, whose signature the callee has not cached; return the keys' bytes."""
        peer = self._peers.get(~reply.shard)
        part = peer and (peer.unanswered.get(reply.time) or peer.ahead.get(reply.time))
        if not part:
            return 0
        message, sent = part.message, 0
        if message.unsent_keys is not None:
            message.keys, message.unsent_keys = message.unsent_keys, None
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

    def _refill(self, peer: Peer) -> None:
        while peer.queue and len(peer.unanswered) < self._window:
            waiting = peer.queue.popleft()
            if waiting.task.error is not None:
                # Its caller knows of the error, and may reuse the arrays.
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

    def missing(self, answer: Message) -> None:
        """Send again, within the budget, the parts that a callee has not received."""
        address = ~answer.shard if answer.shard >= 0 else answer.sender
        peer = self._peers.get(address)
        if peer is None:
            return
        if peer.timer is not None:
            peer.timer.answered(self.now())
            if answer.after:
                peer.timer.heard(self.now())
        parts = [peer.unanswered.get(time) or peer.ahead.get(time) for time, _ in answer.after]
        self._again((part for part in parts if part is not None and self._budget.spend()), "lost")

    def redirect(self, addresses: Collection[int], cause: str) -> int:
        """Send again the unanswered parts of addresses that have moved to another rank; return their number."""
        peers = [self._peers[address] for address in addresses if address in self._peers]
        self.ahead.ask_again(address for address in addresses if address in self._peers)
        return self._again((part for peer in peers for part in peer.waiting()), cause)

    def _again(self, parts: Iterable[Part], cause: str) -> int:
        count = 0
        for part in list(parts):
            # The new callee may not know of requests that have finished since.
            if part.message.after:
                peer = self._peers[part.address]
                part.message.after = tuple(
                    [
                        pair
                        for pair in part.message.after
                        if pair[0] in peer.unanswered or pair[0] in peer.ahead
                    ]
                )
            self._dispatch(part)
            count += 1
        if count:
            self.again[cause] += count
        return count

    def give_up(self, why: Message, which: Callable[[int, Message], bool]) -> None:
        """Take `why`, a failure, as the reply to each unanswered or queued part with `which(address, request)`.

        Not to those whose reply is known: the program has to take the same way again.
        """
        known = {(reply.time, _address(reply)) for reply in self.due_replies}

        def fails(address: int, request: Message) -> bool:
            part = request.time, address
            return part not in known and part not in self.known_replies and which(address, request)

        for address, peer in self._peers.items():
            for part in [each for each in peer.queue if fails(address, each.message)]:
                peer.queue.remove(part)
                self._fail(address, part, why)
            for part in [each for each in reversed(peer.unanswered.values()) if fails(address, each.message)]:
                if part.message.restore is not None:
                    part.message.restore()
            for time, part in list(peer.unanswered.items()):
                if fails(address, part.message) and peer.unanswered.pop(time, None) is not None:
                    self._fail(address, part, why)
            for time, part in list(peer.ahead.items()):
                if fails(address, part.message):
                    self.ahead.drop(peer, time)
            self._refill(peer)

    def _fail(self, address: int, part: Part, why: Message) -> None:
        self._leave_fast_path(part)
        if self.on_reply is not None:
            self.on_reply(address, part.task.time, why, True)
        if self.on_journaled is not None:
            reply = copy(why)
            reply.time = part.task.time
            self.on_journaled(address, reply)
        part.task.answer(part.number, why)

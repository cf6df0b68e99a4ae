"""Replays a recorded run (`mpips.replay.recorder`, `mpips.replay.history`), on ranks of which none dies.

    worker    handles the recorded events in the recorded order, and no others; early messages are queued. A worker that
              died in the recorded run waits forever after its last event.
    shard     executes the recorded changes in the recorded order; each read runs after the same number of changes as in
              the recorded run. Requests that took no effect are not executed.
    leader    runs the program with the recorded decisions, and receives WorkerLost for each part that raised it in the
              recorded run.

Each worker, shard and leader thus goes through the same states: what each does next follows from its program and the
events so far. The replay cannot deadlock: in the recorded run each event came after its causes, so there is always one
that can happen next. If all ranks wait nevertheless, the program has diverged from the recorded run. That is detected
by counting messages (Mattern 1987): the leader asks all ranks twice whether they wait, and how many messages each has
sent and received. If all wait, all sent messages were received, and no count has changed between the two times, the
run ends with an error that names who waits for what.

Views are not sent; a worker changes its worker set at the recorded event. Shard holders never change, so a server that
became a worker in the recorded run plays both roles: it becomes a worker when its first call as a worker has arrived,
and serves its shards all the time. Calls to it as a server are executed only while it is not a worker.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips.calls import BuiltInCall
from mpips.cluster.layout import Role
from mpips.cluster.policy import Policy
from mpips.cluster.registration import Registration
from mpips.cluster.view import View
from mpips.errors import Diverged
from mpips.replay.history import LeaderHistory, RecordedEvent, ShardHistory, load_events
from mpips.replay.recorder import ANSWER, CALL, JOINED, NOTIFY, WORKERS
from mpips.transport.message import NO_ROUND, Command, Kind, Message

if TYPE_CHECKING:
    from mpips.cluster.node import Node
    from mpips.server.replication import Link
    from mpips.server.server import Server

T = TypeVar("T")
Key = tuple[int, int]
QUIET = 1.0
"""Seconds without progress after which the leader queries the other ranks."""
MOST_NAMED = 4
"""Number of waiting ranks that an error message names."""
IGNORED = frozenset(
    (
        Command.VIEW,
        Command.NOTIFY,
        Command.ANNOUNCE,
        Command.STORE,
        Command.ASK_VIEW,
        Command.VIEWS,
        Command.PROPOSE,
        Command.ACCEPTED,
        Command.DIED,
        Command.LOG,
        Command.LOGGED,
    )
)
"""Control messages without a meaning in a replay."""


class Player(Policy):
    """The policy of one rank in a replay of the history in `folder`; see the module."""

    is_replay = True

    def __init__(self, node: Node, folder: Path) -> None:
        self.node, self._folder = node, folder
        path = folder / f"worker-{node.rank:04d}.bin"
        self._events = deque(load_events(path)) if os.path.lexists(path) else None
        """The events of this rank as a worker; None if it never was one."""
        self._worked = [(node.view.workers_since, node.place.role is Role.WORKER)]
        """(epoch, whether this rank was a worker since then), for each recorded change of the worker set."""
        for event in self._events or ():
            if event.kind == WORKERS:
                self._worked.append((event.time, node.rank in event.text))
        self._called = {event.time for event in self._events or () if event.kind == CALL}
        self._replies: dict[Key, Message] = {}
        self._calls: dict[int, Message] = {}
        # Calls to this rank as a server, while it is a worker.
        self._others: list[Message] = []
        self._program_polls = 0
        self._working = self._handling = False
        self._leader = LeaderHistory.load(folder / "leader.json") if node.rank == node.view.leader else None
        self._lost = set(self._leader.lost) if self._leader is not None else set()
        self.detector = DeadlockDetector(node, self)
        self._shard_replays: ShardReplays | None = None
        node.observers.sent += (self._sent,)
        node.register(
            Registration(
                controls={
                    Command.ASK_STATE: self.detector.send_state,
                    Command.STATE: self.detector.take_state,
                },
                ticks=(self.detector.tick,),
            )
        )

    # --- at every rank -----------------------------------------------------------------------------

    def delivery(self, deliver: Callable[[Message], None]) -> Callable[[Message], None]:
        """Return the function that receives messages: it queues them until the recorded order admits them."""
        return self._take

    def _take(self, message: Message) -> None:
        """Receive a message; replies and calls are queued until the recorded order admits them."""
        node, kind = self.node, message.kind
        if kind is Kind.CONTROL:
            if message.command in node.controls and message.command not in IGNORED:
                node.controls[message.command](message)
            return
        self.detector.received += 1
        if message.filtered and not node.decoded(message):
            return
        if kind is Kind.REQUEST and message.shard >= 0:
            node.shards(message)
        elif kind is Kind.REQUEST:
            self._call(message)
        elif kind is Kind.SEND_KEYS:
            node.savings.sent_keys += node.tasks.send_keys(message)
        elif self._events is None:
            node.tasks.answer(message)
        else:
            self._replies[_address(message), message.time] = message

    def _call(self, request: Message) -> None:
        """Receive a call: queue it if it is for the worker role, else execute it."""
        node, workers_since = self.node, int(request.meta.get("workers_since", 0))
        last = max(since for since, _ in self._worked if since <= workers_since)
        # A replay writes no files, and the rank may have another role by now.
        if request.meta["call"] == BuiltInCall.WRITTEN:
            node.callee.reply(request, meta={})
        elif (last, True) in self._worked or request.time in self._called:
            self._calls[request.time] = request
        elif node.role is Role.WORKER:
            self._others.append(request)
        else:
            node.callee.admit(request)

    def lost(self, address: int, time: int) -> bool:
        """Return whether the recorded task (address, time) of the leader failed by the loss of a worker."""
        return (address, time) in self._lost

    def _sent(self, message: Message) -> None:
        """Count a message before it is sent."""
        self.detector.sent += message.kind is not Kind.CONTROL

    # --- at the leader -----------------------------------------------------------------------------

    def decide(self, number: int, make: Callable[[], T]) -> T:
        """Return the recorded decision."""
        assert self._leader is not None
        if number >= len(self._leader.decisions):
            raise Diverged(
                f"the program asks for decision {number}, and only {len(self._leader.decisions)} are recorded"
            )
        decided: T = self._leader.decisions[number]
        return decided

    # --- at a worker -------------------------------------------------------------------------------

    def next_event(self) -> bool:
        """Handle the next recorded event, and those joined to it, if they have arrived; return whether they have."""
        return self._handle_next(0)

    def poll_in_program(self, poll: Callable[[], bool]) -> None:
        """Handle the events that were recorded at this poll of the program, if any."""
        self._program_polls += 1
        node, events = self.node, self._events
        if events and events[0].program_poll == self._program_polls:
            while events and events[0].program_poll == self._program_polls:
                node.wait_until(lambda: self._handle_next(self._program_polls))
        else:
            self._working = True
            message = node.van.receive()
            if message is not None:
                node.take(message)
            self._working = False

    def _handle_next(self, program_poll: int) -> bool:
        events = self._events
        if (
            self._handling
            or not events
            or events[0].program_poll != program_poll
            or not self._is_here(events[0])
        ):
            return False
        self._handling, outer, self.node.polling = True, self.node.polling, True
        try:
            self._do(events.popleft())
            while events and events[0].flags & JOINED:
                self.node.wait_until(lambda: self._is_here(events[0]))
                self._do(events.popleft())
        finally:
            self._handling, self.node.polling = False, outer
        return True

    def _is_here(self, event: RecordedEvent) -> bool:
        if event.kind == ANSWER:
            return (event.rank, event.time) in self._replies
        if event.kind == CALL:
            return event.time in self._calls and bool(self.node.handlers)
        if event.kind == WORKERS and self.node.role is not Role.WORKER:
            # A call as a server may precede it.
            called = next((each.time for each in self._events or () if each.kind == CALL), None)
            return called in self._calls and not self.node.callee.ready
        return True

    def _do(self, event: RecordedEvent) -> None:
        node = self.node
        if event.kind == ANSWER:
            node.tasks.answer(self._replies.pop((event.rank, event.time)))
        elif event.kind == CALL:
            node.callee.admit(self._calls.pop(event.time))
            node.act()
        elif event.kind == NOTIFY:
            node.controls[Command.NOTIFY](Message(Kind.CONTROL, Command.NOTIFY, meta=event.text))
        elif event.kind == WORKERS:
            node.adopt(with_workers_since(node.view, event.time, tuple(event.text)))
            if node.role is not Role.WORKER:
                others, self._others = self._others, []
                for request in others:
                    node.callee.admit(request)

    # --- at a server -------------------------------------------------------------------------------

    def request_order(self, server: Server) -> ShardReplays:
        """Return the object that admits requests to a server's shards."""
        self._shard_replays = ShardReplays(server, self._folder)
        return self._shard_replays

    # --- detection of deadlocks ------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether this rank waits for a message."""
        events = self._events
        if self._working or not events or not self._is_here(events[0]):
            return not self._working
        return not self._handling and events[0].program_poll not in (0, self._program_polls)

    def waits_for(self) -> str:
        """Describe the recorded event that this rank waits for; "" if there is none."""
        if self._events:
            return f"{self._name()} waits for {self._named(self._events[0])}"
        return "" if self._shard_replays is None else self._shard_replays.waits_for()

    def _name(self) -> str:
        return f"worker {self.node.place.index} (rank {self.node.rank})"

    def _named(self, event: RecordedEvent) -> str:
        missing = {
            ANSWER: f"the answer of shard {~event.rank} to its request {event.time}",
            CALL: f"call {event.time}",
        }
        if event.program_poll and event.program_poll != self._program_polls:
            return f"poll {event.program_poll} of its program, which has made {self._program_polls}"
        return missing.get(event.kind, "other workers")


def _address(reply: Message) -> int:
    return ~reply.shard if reply.shard >= 0 else reply.sender


def with_workers_since(view: View, since: int, workers: tuple[int, ...]) -> View:
    """Return a view with these workers since an epoch; all other former workers are spares."""
    roles = [
        Role.WORKER if rank in workers else Role.SPARE if role is Role.WORKER else role
        for rank, role in enumerate(view.roles)
    ]
    return replace(
        view, epoch=max(since, view.epoch + 1), workers_since=since, workers=workers, roles=tuple(roles)
    )


class ShardReplay:
    """Admits requests to one shard in the recorded order; see the module."""

    def __init__(self, server: Server, link: Link, history: ShardHistory) -> None:
        self._server, self._link, self._history = server, link, history
        self._held: dict[Key, Message] = {}
        self._changes = 0
        self._reads_done = 0
        self._next: list[Key] = []
        self._due: set[Key] = set()
        self._turn()

    def _turn(self) -> None:
        """Determine the requests that are due after `_changes` changes: reads, and then the next change."""
        history, at = self._history, self._reads_done
        end = int(np.searchsorted(history.reads["version"], self._changes, "right"))
        self._due = {(rank, time) for _, rank, time in history.reads[at:end].tolist()}
        self._reads_done = end
        self._next = []
        if self._changes < history.changes:
            first, last = history.first[self._changes], history.first[self._changes + 1]
            # As tuples.
            self._next = history.callers[first:last].tolist()

    def admit(self, request: Message) -> None:
        """Receive a request; execute all that are due now."""
        self._held[request.origin, request.time] = request
        while self._advance():
            pass

    def _advance(self) -> bool:
        held = self._held
        for key in sorted(self._due & held.keys()):
            self._due.remove(key)
            self._server.executor.perform(self._link, [held.pop(key)], together=False)
        if self._due or not self._next or not all(key in held for key in self._next):
            return False
        shard = self._link.shard
        assert shard is not None
        requests = [held.pop(key) for key in self._next]
        first, command = requests[0], Command(int(self._history.commands[self._changes]))
        which = f"shard {self._link.number}: change {self._changes + 1}, request {first.time} of rank {first.origin},"
        if command not in [each.command for each in requests]:
            raise Diverged(f"{which} was a {command.name}, but is now a {first.command.name}")
        self._server.executor.perform(self._link, requests, together=first.round != NO_ROUND)
        self._changes += 1
        if shard.changes != self._changes:
            raise Diverged(f"{which} now changes nothing")
        self._turn()
        return True

    def waits_for(self) -> str:
        """Describe the request that this shard waits for; "" if there is none."""
        missing = [key for key in (*sorted(self._due), *self._next) if key not in self._held]
        if not missing:
            return ""
        rank, time = missing[0]
        what = (
            f"read after change {self._changes}" if missing[0] in self._due else f"change {self._changes + 1}"
        )
        return f"shard {self._link.number} waits for its {what}, request {time} of rank {rank}"


class ShardReplays:
    """Admits requests to the shards of a server in the recorded order."""

    def __init__(self, server: Server, folder: Path) -> None:
        self._server, self._folder = server, folder
        self._shard_replays: dict[int, ShardReplay] = {}

    def admit(self, link: Link, request: Message) -> None:
        """Receive a request to a shard."""
        if not self._server.admission.find_keys(request):
            return
        replay = self._shard_replays.get(link.number)
        if replay is None:
            path = self._folder / f"shard-{link.number:04d}.npz"
            history = ShardHistory.load(path) if os.path.lexists(path) else NOTHING
            replay = self._shard_replays[link.number] = ShardReplay(self._server, link, history)
        replay.admit(request)

    def waits_for(self) -> str:
        """Describe the request that the first waiting shard waits for; "" if none waits."""
        return next((text for replay in self._shard_replays.values() if (text := replay.waits_for())), "")


def _none(dtype: Any) -> NDArray[Any]:
    return np.empty(0, dtype)


NOTHING = ShardHistory(
    np.zeros(1, np.int64),
    _none([("rank", "<i4"), ("time", "<i8")]),
    _none(np.int64),
    _none([("version", "<i8"), ("rank", "<i4"), ("time", "<i8")]),
)
"""The history of a shard without requests."""


class DeadlockDetector:
    """Detects that no rank can make progress; the leader evaluates the states of all ranks. See the module."""

    def __init__(self, node: Node, player: Player) -> None:
        self._node, self._player = node, player
        self.sent = self.received = 0
        # Number of messages sent and received, and the time of the last change of it.
        self._moved = (-1, 0.0)
        self._wave: dict[int, tuple[int, int, str]] | None = None
        self._before: tuple[int, int] | None = None

    def tick(self) -> None:
        """Query all ranks, at the leader, after `QUIET` seconds without progress."""
        node = self._node
        if node.view.leader != node.rank:
            return
        now, count = node.van.now(), self.sent + self.received
        if count != self._moved[0]:
            self._moved, self._before, self._wave = (count, now), None, None
        elif now - self._moved[1] > QUIET and self._wave is None:
            self._wave = {node.rank: (self.sent, self.received, self._player.waits_for())}
            for rank in node.view.alive:
                if rank != node.rank:
                    node.control(rank, Command.ASK_STATE, {})

    def send_state(self, message: Message) -> None:
        """Answer the leader's query: whether this rank waits, for what, and its message counts."""
        player = self._player
        meta = {
            "waits": player.waits,
            "sent": self.sent,
            "received": self.received,
            "text": player.waits_for(),
        }
        self._node.control(message.sender, Command.STATE, meta)

    def take_state(self, message: Message) -> None:
        """Receive a rank's answer; the last one completes the wave."""
        meta = message.meta
        if self._wave is None:
            return
        if not meta["waits"]:
            self._wave = self._before = None
            self._moved = (self._moved[0], self._node.van.now())
            return
        self._wave[message.sender] = (meta["sent"], meta["received"], meta["text"])
        if len(self._wave) == len(self._node.view.alive):
            self._compare(self._wave)

    def _compare(self, wave: dict[int, tuple[int, int, str]]) -> None:
        sums = sum(each[0] for each in wave.values()), sum(each[1] for each in wave.values())
        self._wave = None
        if sums[0] == sums[1] and sums == self._before:
            texts = [text for _, (_, _, text) in sorted(wave.items()) if text]
            more = f"; and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
            raise Diverged(
                "the replay cannot continue as recorded: "
                + ("; ".join(texts[:MOST_NAMED]) + more if texts else "all recorded events were handled")
            )
        self._before = sums if sums[0] == sums[1] else None
        self._moved = (self._moved[0], self._node.van.now())

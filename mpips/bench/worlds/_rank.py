"""One rank of a small world: its real objects, run event by event, without threads and without waiting.

`Live` has the objects: a node, its membership, its server or the worker's program. An event hands over one message, or
lets the periodic callbacks run, and ends when the rank has nothing left to do. What a rank does depends on its events
only, so `Ranks` numbers the states that ranks have been in (by `digest`) and remembers what each event does in each:
real code runs once for each pair, and the search over all orders of events works with numbers. A state whose objects
have gone on is made again by its events.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.bench.worlds._digest import digest
from mpips.cluster.departure import Fenced
from mpips.cluster.layout import Layout, Role
from mpips.cluster.node import Node
from mpips.cluster.view import View
from mpips.errors import ShardLost
from mpips.membership.membership import Membership
from mpips.server.server import Server
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.transport.buffer_pool import BufferPool
from mpips.transport.fastpath.table import FastPathTable
from mpips.transport.message import Kind, Message, from_bytes, to_bytes
from mpips.worker.vector import Vector

SECONDS = 1.1
"""Seconds of a step of time: every timeout but `UNATTENDED` and `LEADERLESS` ends within one."""
PATIENCE, RESEND = 1.0, 0.01
KEPT = 64
"""States whose objects are kept."""
SINGLES, ROUNDS = 0, 1
"""The namespaces of the two vectors: pushes that are applied at once, and sums of rounds."""
SPECS = (
    VectorSpec("singles", dtype="int64", extent=1 << 20),
    VectorSpec("rounds", dtype="int64", extent=1 << 20, aggregate=True),
)


class Ages(NamedTuple):
    """For how many steps of time each rank was not heard, has not confirmed this one, and does not hear it."""

    silent: tuple[int, ...]
    unconfirmed: tuple[int, ...]
    deaf: tuple[int, ...]


class _Van:
    """The van of one rank: what it sends is taken by the event's caller."""

    in_digest = False
    survives, compiled, slot = True, False, -1

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size, self.epoch, self.time = rank, size, 0, 0
        self.sent_bytes = self.received_bytes = self.sent_messages = 0
        self.receive_buffer: Callable[[Message], NDArray[Any] | None] = lambda message: None
        self.fast_path: FastPathTable | None = None
        self.buffers = BufferPool()
        self.sent: list[tuple[int, bytes]] = []
        self.arrived: list[Message] = []
        self.died: list[int] = []
        self.excluded: set[int] = set()

    def send(self, dest: int, message: Message) -> None:
        if dest not in self.excluded:
            self.sent.append((dest, to_bytes(message)))

    def receive(self) -> Message | None:
        return self.arrived.pop(0) if self.arrived else None

    def ask(self, *request: Any) -> list[int]:
        return []

    def version(self) -> int:
        return -1

    def withdraw(self, slot: int) -> None:
        return

    def idle(self) -> None:
        raise AssertionError("a rank of a small world does not wait")

    def glance(self) -> None:
        return

    def finish_receives(self) -> None:
        return

    def arriving(self, source: int) -> bool:
        return False

    def unsent(self, dest: int) -> int:
        return 0

    def pending(self) -> int:
        return 0

    def failed(self) -> list[int]:
        died, self.died = self.died, []
        return [rank for rank in died if rank not in self.excluded]

    def exclude(self, rank: int) -> None:
        self.excluded.add(rank)

    def now(self) -> float:
        return self.time * SECONDS

    def wall(self) -> float:
        return 0.0

    def close(self) -> None:
        return


class _Detector:
    """The failure detector of one rank: it knows for how many steps of time each rank was silent."""

    in_digest = False

    def __init__(self, size: int) -> None:
        self.targets: Sequence[int] = ()
        self.seldom: Sequence[int] = ()
        self.follows = -1
        self.muted = self.hears_muted = False
        self.ages = Ages(*((0,) * size,) * 3)

    def silent(self, ranks: Iterable[int], patience: float) -> list[int]:
        return self._at_least(self.ages.silent, ranks, patience)

    def unconfirmed(self, ranks: Iterable[int], patience: float) -> list[int]:
        return self._at_least(self.ages.unconfirmed, ranks, patience)

    def deaf(self, ranks: Iterable[int], patience: float) -> list[int]:
        return self._at_least(self.ages.deaf, ranks, patience)

    @staticmethod
    def _at_least(ages: Sequence[int], ranks: Iterable[int], patience: float) -> list[int]:
        assert ages, "a message is handled without asking the detector"
        return [rank for rank in ranks if ages[rank] and ages[rank] * SECONDS >= patience]


class _Leases:
    """The leases in the run's folder; `looked`: whether a rank has used them in its present event."""

    in_digest = taking = False

    def __init__(self) -> None:
        self.taken: dict[int, str] = {}
        self.looked = False

    def take(self, number: int, view: str) -> str | None:
        self.looked = True
        return self.taken.setdefault(number, view)

    def holder(self, number: int) -> str | None:
        self.looked = True
        return self.taken.get(number, "")


Condition = Callable[[], bool]
Script = Callable[["Program"], Iterator[Condition]]


class Program:
    """The worker's program: a script that yields what it waits for, and checks what it reads."""

    def __init__(self, node: Node, script: Script) -> None:
        self.node = node
        self.singles, self.rounds = (Vector(node, spec, number) for number, spec in enumerate(SPECS))
        self.issued: dict[tuple[int, int], int] = {}
        """By vector and key: the sum of all pushes."""
        self.acknowledged: dict[tuple[int, int], int] = {}
        self.log: list[Any] = []
        """What was read, and how often the script has gone on: with it, the script's place is known."""
        self.wrong: list[str] = []
        self.done = False
        self._script = script(self)
        self._condition: Condition = lambda: True

    def go_on(self) -> None:
        """Run the script until it waits."""
        while not self.done and self._condition():
            try:
                self._condition = next(self._script)
                self.log.append(None)
            except StopIteration:
                self.done = True

    def push(self, key: int) -> Task:
        """Push 1."""
        return self._count(SINGLES, key, self.singles.push(_keys(key), np.ones(1, np.int64)))

    def push_round(self, round_: int, key: int) -> Task:
        """Push 1 as the only worker of a round, and read its sum; it is acknowledged once `settled`."""
        at = ROUNDS, key
        self.issued[at] = self.issued.get(at, 0) + 1
        return self._logged(self.rounds.push_pull(_keys(key), np.ones(1, np.int64), round=round_))

    def settled(self, key: int) -> Condition:
        """Return the condition that all pushes of rounds are on all copies."""
        issued = self.issued[ROUNDS, key]

        def are_settled() -> bool:
            self.node.request_acknowledgements()
            settled = not self.node.tasks.ahead.count
            if settled:
                self.acknowledged[ROUNDS, key] = issued
            return settled

        return are_settled

    def _count(self, vector: int, key: int, task: Task) -> Task:
        at = vector, key
        self.issued[at] = self.issued.get(at, 0) + 1

        def acknowledged(task: Task) -> None:
            if task.error is None:
                self.acknowledged[at] = self.acknowledged.get(at, 0) + 1

        return task.then(acknowledged)

    def read(self, task: Task, least: int, most: int) -> int:
        """Check the value that a finished task has read."""
        if task.error is not None:
            self.wrong.append(f"{task.what}: {task.error}")
            return least
        value = _value(task)
        if not least <= value <= most:
            what = "stale or lost" if value < least else "applied twice"
            self.wrong.append(f"{task.what} reads {value}, not {least} to {most}: {what}")
        return value

    def pull(self, vector: int, key: int, after: Sequence[Task] = ()) -> Task:
        """Pull a key."""
        return self._logged((self.singles, self.rounds)[vector].pull(_keys(key), after=after))

    def _logged(self, task: Task) -> Task:
        """Log what a task has read as soon as it is there: with it, what the script does later is known."""
        return task.then(lambda task: self.log.append(None if task.error else _value(task)))


def _value(task: Task) -> int:
    return int(np.asarray(task.values).reshape(-1)[0])


def _keys(key: int) -> NDArray[np.uint64]:
    return np.array([key], np.uint64)


class Facts(NamedTuple):
    """What the search must know of a rank's state."""

    view: View
    follows: int
    muted: bool
    hears_muted: bool
    frozen: bool
    leads: bool
    left: bool
    settled: bool
    """Whether nothing is under way here: its program is done, no copy and no change of the view is pending."""
    excluded: frozenset[int]
    dead: frozenset[int]
    values: tuple[tuple[int, int, int, int], ...]
    """Of each shard that it holds as a member: shard, vector, key, value."""
    issued: tuple[tuple[tuple[int, int], int], ...]
    acknowledged: tuple[tuple[tuple[int, int], int], ...]
    wrong: str


class Live:
    """The objects of one rank."""

    def __init__(self, setting: Setting, rank: int) -> None:
        layout = setting.layout
        self.rank = rank
        self.van, self.detector, self.leases = _Van(rank, layout.size), _Detector(layout.size), _Leases()
        node = self.node = Node(
            self.van, layout, setting.view, resend=setting.resend, signs=False, held=dict
        )  # fmt: skip
        node._chance = lambda: 0.0
        self.membership = Membership(node, setting.replicas, self.detector, PATIENCE, leases=self.leases)
        self.published: list[View] = []
        self.membership.on_publish = self.published.append
        self.server: Server | None = None
        self.program: Program | None = None
        self.left, self.wrong = False, ""
        self.keys = setting.keys
        if node.role is Role.WORKER:
            self.program = Program(node, setting.script)
        else:
            self.server = Server(node, key_cache=1e3)
            for link in self.server.chains:
                for number in {vector for vector, _ in setting.keys}:
                    if link.shard is not None:
                        link.shard.create(number, SPECS[number])
            self.server.enter()
        if rank == setting.view.leader:
            setting.begin(self.membership)
        if self.program is not None:
            self.program.go_on()
        node.outbox.flush()

    def run(self, event: Event, message: bytes | None) -> None:
        """Do one event."""
        node = self.node
        self.van.time, self.detector.ages = event.time, event.ages
        self.leases.taken, self.leases.looked = dict(event.leases), False
        if message is None:
            self.van.died, node._next_tick = list(event.died), 0.0
        else:
            # Only the periodic callbacks ask detector and leases.
            node._next_tick = float("inf")
            self.van.arrived.append(from_bytes(bytearray(message)))
        try:
            self._run()
        except Fenced:
            self.left = True
        except ShardLost as lost:
            self.left, self.wrong = True, f"ShardLost: {lost}"
        except Exception as error:
            self.left, self.wrong = True, f"{type(error).__name__}: {error}"

    def _run(self) -> None:
        while self.node.poll():
            pass
        if self.program is not None:
            self.program.go_on()
            while self.node.poll():
                pass
        self.node.outbox.flush()

    def digest(self) -> bytes:
        """Return the digest of this state."""
        node, server = self.node, self.server
        program = self.program
        if self.left:
            # What it has acknowledged still counts.
            pushed = None if program is None else (program.issued, program.acknowledged)
            return digest(self.rank, "left", self.wrong, pushed)
        parts: tuple[Any, ...] = ()
        if server is not None:
            parts = server.chains, server.executor, server.admission, server._acknowledgements
        if program is not None:
            parts = program.log, program.issued, program.acknowledged, program.wrong, program.done
        return digest(
            self.rank, node.view, node.tasks, node.callee, node._future_messages, node.frozen, node.departure,
            self.membership, self.detector.follows, self.detector.muted, self.detector.targets, self.van.excluded,
            *parts,
        )  # fmt: skip

    def facts(self) -> Facts:
        """Return what the search must know."""
        node, program, server = self.node, self.program, self.server
        view, membership = node.view, self.membership
        settled = program is None or program.done
        if membership.leading:
            moving = any(chain.learner >= 0 or chain.closing for chain in view.chains)
            settled &= not (moving or membership._changes or membership._consensus.proposal)
        wrong = self.wrong
        if program is not None and program.wrong:
            wrong = program.wrong[0]
        issued = () if program is None else tuple(sorted(program.issued.items()))
        acknowledged = () if program is None else tuple(sorted(program.acknowledged.items()))
        return Facts(
            view, self.detector.follows, self.detector.muted, self.detector.hears_muted, node.frozen,
            membership.leading, self.left, settled, frozenset(self.van.excluded), frozenset(membership._detection.dead),
            () if server is None else tuple(self._values(server)), issued, acknowledged, wrong,
        )  # fmt: skip

    def _values(self, server: Server) -> Iterator[tuple[int, int, int, int]]:
        for link in server.chains:
            if link.shard is None or link.learning:
                continue
            for vector, key in self.keys:
                segment = link.shard.vectors[vector].segment
                if any(owned.begin <= key < owned.end for owned in segment.ranges):
                    slots = segment.resolve(_keys(key), False)
                    yield link.number, vector, key, int(segment.pull_slots(slots, keys=_keys(key))[0, 0])


class Event(NamedTuple):
    """What happens to one rank: a message arrives, or its periodic callbacks run."""

    time: int
    message: int = -1
    """Its number; -1: the callbacks run."""
    died: tuple[int, ...] = ()
    """The ranks whose death MPI reports now."""
    ages: Ages = Ages((), (), ())
    leases: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Setting:
    """The ranks, what the worker's program does, and what the leader does at the beginning."""

    layout: Layout
    view: View
    replicas: int
    script: Script
    keys: tuple[tuple[int, int], ...]
    """The vectors and keys that the program pushes."""
    resend: float | None = None
    begin: Callable[[Membership], None] = lambda membership: None


class Effect(NamedTuple):
    """What an event does: the rank's next state, the messages that it sends, and the views that it publishes."""

    state: int
    sent: tuple[int, ...]
    published: tuple[View, ...]
    leases: tuple[tuple[int, str], ...]
    looked: bool
    """Whether it used the leases: then its order among other such events counts."""


class Ranks:
    """All states of ranks that were met, by number, and what events do in them."""

    def __init__(self, setting: Setting) -> None:
        self.setting = setting
        self.facts: list[Facts] = []
        self.messages: list[tuple[int, bytes]] = []
        """By number: receiver and bytes."""
        self.headers: list[Message] = []
        self.executed = 0
        """Events that real code has executed, without repetitions."""
        self._message_numbers: dict[tuple[int, bytes], int] = {}
        self._numbers: dict[bytes, int] = {}
        # By state: how it was first reached.
        self._before: list[tuple[int, Event | None]] = []
        self._arrivals: dict[tuple[int, int, int], Effect] = {}
        self._ticks: dict[tuple[int, Event], Effect] = {}
        self._live: OrderedDict[int, Live] = OrderedDict()

    def first(self, rank: int) -> Effect:
        """Return the first state of a rank, and what it sends at once."""
        live = Live(self.setting, rank)
        state = self._number(live, (-1 - rank, None))
        self._keep(state, live)
        return Effect(state, self._sent(live), (), (), False)

    def arrival(self, state: int, time: int, message: int) -> Effect:
        """Return what an arriving message does in a state."""
        name = state, time, message
        found = self._arrivals.get(name)
        if found is None:
            found = self._arrivals[name] = self._execute(state, Event(time, message))
        return found

    def tick(self, state: int, event: Event) -> Effect:
        """Return what the periodic callbacks do in a state."""
        name = state, event
        found = self._ticks.get(name)
        if found is None:
            found = self._ticks[name] = self._execute(state, event)
        return found

    def _execute(self, state: int, event: Event) -> Effect:
        live = self._live.pop(state, None) or self._again(state)
        self.executed += 1
        live.run(event, None if event.message < 0 else self.messages[event.message][1])
        after = self._number(live, (state, event))
        published, live.published[:] = tuple(live.published), []
        leases = tuple(sorted(live.leases.taken.items()))
        sent = self._sent(live)
        self._keep(after, live)
        return Effect(after, sent, published, leases, live.leases.looked)

    def _again(self, state: int) -> Live:
        """Make the objects of a state again."""
        events: list[Event] = []
        at = state
        while (before := self._before[at])[1] is not None:
            at = before[0]
            events.append(before[1])
            if at in self._live:
                break
        live = self._live.pop(at, None) or Live(self.setting, -1 - self._before[at][0])
        for event in reversed(events):
            live.run(event, None if event.message < 0 else self.messages[event.message][1])
            live.van.sent.clear()
            live.published.clear()
        live.van.sent.clear()
        return live

    def _number(self, live: Live, before: tuple[int, Event | None]) -> int:
        name = live.digest()
        number = self._numbers.get(name)
        if number is None:
            number = self._numbers[name] = len(self.facts)
            self.facts.append(live.facts())
            self._before.append(before)
        return number

    def _keep(self, state: int, live: Live) -> None:
        self._live[state] = live
        if len(self._live) > KEPT:
            self._live.popitem(last=False)

    def _sent(self, live: Live) -> tuple[int, ...]:
        sent, live.van.sent = live.van.sent, []
        return tuple(map(self._message, sent))

    def _message(self, sent: tuple[int, bytes]) -> int:
        number = self._message_numbers.get(sent)
        if number is None:
            number = self._message_numbers[sent] = len(self.messages)
            self.messages.append(sent)
            self.headers.append(from_bytes(bytearray(sent[1])))
        return number

    def is_control(self, message: int) -> bool:
        """Return whether a message is never lost while its sender and receiver live."""
        return self.headers[message].kind is Kind.CONTROL

    def __len__(self) -> int:
        return len(self.facts)

"""A node: the event loop of one rank (the paper's node; ps-lite's postoffice).

It owns the van, the caller's and the callee's side of its tasks, and the view. `poll` handles one message and
`wait` polls until a task is finished; a rank handles all messages inside these two, in one thread.
The role registers a handler for each command, which executes its requests.

A message of a later epoch than the node's waits until the node has adopted that view; one from a rank that the view
excludes is dropped. When a shard gets another primary, the node repeats its unanswered requests.

The module is long because receiving, dispatch, waiting and the change of a view read and write the same state:
separate files would have to access each other's attributes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from random import Random
from typing import TYPE_CHECKING, Any, TypeVar

from numpy.typing import NDArray

from mpips.cluster.departure import Departure, Fenced, stop
from mpips.cluster.error_report import add_caller, describe
from mpips.cluster.faults import Faults
from mpips.cluster.filter_codec import FilterCodec
from mpips.cluster.layout import Layout, Role
from mpips.cluster.observer import Observers
from mpips.cluster.outbox import TURN, Outbox
from mpips.cluster.policy import LIVE, Policy
from mpips.cluster.registration import Handler, Registration
from mpips.cluster.usage import HeldMemory, Savings, TimeUse, process_usage
from mpips.cluster.view import View
from mpips.errors import (
    FilterError,
    RemoteError,
)
from mpips.filters.chain import Chain
from mpips.forked import check_not_forked
from mpips.process import program_line
from mpips.process.host import host_name
from mpips.storage.updates import VectorSpec
from mpips.tasks.callee import Callee
from mpips.tasks.caller import Tasks
from mpips.tasks.retransmission import Timer
from mpips.tasks.task import Task
from mpips.transport.message import (
    ANSWER,
    NO_ROUND,
    Command,
    Kind,
    Message,
    unbundle,
)
from mpips.transport.van import Van

if TYPE_CHECKING:
    # For types only, since it loads kernels.
    from mpips.transport.fastpath.table import FastPathTable

T = TypeVar("T")
URGENT = frozenset(
    (
        Command.STOP,
        Command.FAILED,
        Command.BARRIER,
        Command.GONE,
        Command.VIEW,
        Command.VIEW_SEEN,
        Command.ASK_VIEW,
        Command.VIEWS,
        Command.PROPOSE,
        Command.ACCEPTED,
        Command.DIED,
    )
)
"""Control messages that do not wait for the view under which they were sent, or for the end of a freeze."""
_ROWS = frozenset((Command.PULL, Command.PUSH_PULL))
"""Commands that are answered with rows of a vector."""
_REQUESTS = _ROWS | {Command.PUSH}
_ASKING = frozenset((Kind.REQUEST, Kind.PROBE))
IDLE = "the next call"
"""The cause of an idle worker's wait."""
TICK = 0.005
"""Seconds between two runs of the periodic callbacks: retransmission, detection of deaths, pieces of copies."""
LAG = 8
"""Number of later tasks after which a rank requests the acknowledgement of a push that was answered ahead."""


def _no_shards(message: Message) -> None:
    """Drop a request to a shard: its sender will get the view in which this rank holds none."""


def _no_work() -> bool:
    return False


class Node:
    """One rank of the cluster.

    `resend`: seconds without an answer before the first probe (None: no probes, since MPI loses no messages).
    `pushes` filters the requests of workers to shards, `pulls` the replies of shards. `signs`: repeated lists of keys
    are sent as a signature. `held` returns the memory in use by this process (None: `HeldMemory`).
    """

    def __init__(
        self,
        van: Van,
        layout: Layout,
        view: View,
        *,
        faults: Faults | None = None,
        window: int = 64,
        resend: float | None = None,
        pushes: Chain | None = None,
        pulls: Chain | None = None,
        signs: bool = True,
        held: Callable[[], dict[str, int]] | None = None,
    ) -> None:
        self.van, self.layout, self.view = van, layout, view
        self.observers = Observers()
        self.outbox = Outbox(van, faults, self.observers)
        self.time_use = TimeUse(van, faults, self.observers)
        self.departure = Departure(van, lambda: self.view, self.control, self.poll)
        self.policy: Policy = LIVE
        self._delivered: Handler = self.deliver
        self.place = layout.places[van.rank]
        self.rank, self.host = van.rank, host_name()
        self.codec = FilterCodec(pushes or Chain(), pulls or Chain(), van, self.observers)
        self.signs = signs
        self.specs: dict[int, VectorSpec] = {}
        """By namespace: the specification of each vector that this rank has a handle on."""
        self.spec_of: Callable[[int], VectorSpec | None] = self.specs.get
        self.savings = Savings()
        self._window, self.resend, self._held = window, resend, held or HeldMemory()
        self._chance = Random(van.rank).random
        shards_move = len(layout.servers) + len(layout.spares) > 1
        self.keeps = resend is not None or van.survives or shards_move
        """Whether requests may arrive twice, so that replies are kept."""
        self.resent: Counter[str] = Counter()
        """How many messages were sent again, by cause: "lost", "moved", "workers", "keys", "chain"."""
        self.tasks = self.new_tasks(self.rank)
        harmless = faults is None or faults.in_programs
        self.plain = harmless and not self.codec.pushes and not self.codec.pulls
        """Whether messages are sent unchanged: no filters, and no injected faults that concern them."""
        self.direct = self.plain and resend is None
        self.announces = False
        """Whether servers are told which keys will be used soon: rows are larger than memory."""
        """Whether requests may take the client fast path."""
        van.epoch, van.receive_buffer = view.epoch, self._receive_buffer
        self.callee = Callee(self.answer, self.keeps, self.describe)
        self.handlers: dict[Command, Handler] = {}
        self.shards: Handler = _no_shards
        self.controls: dict[Command, Handler] = {
            Command.STOP: stop,
            Command.FAILED: self._failed,
            Command.BARRIER: self.departure.receive_barrier,
            Command.GONE: self.departure.receive_gone,
            Command.ACKNOWLEDGED: self._acknowledged,
        }
        self.on_view: list[Callable[[View, View], None]] = []
        self.on_tick: list[Callable[[], None]] = []
        self.on_glance: list[Callable[[], None]] = []
        self.idle_work: Callable[[], bool] = _no_work
        self.workers_since = 0
        """The epoch of the worker set of the present call."""
        self.faults = faults
        # Messages of later epochs than that of the view, and those that have arrived while the node is frozen.
        self._future_messages: list[Message] = []
        self.frozen = False
        """Whether this rank may be cut off from the others: it takes urgent messages only (`mpips.membership`)."""
        self._table: FastPathTable | None = None
        self._next_tick = 0.0
        self.polling = False
        """Whether a poll is in progress: functions called then, such as a task's callback, must not wait."""

    def new_tasks(self, origin: int) -> Tasks:
        """Create the caller's side of tasks for the caller `origin`."""
        tasks = Tasks(
            self.request,
            self._window,
            origin=origin,
            encode=self._encode,
            withdraw=self.van.withdraw,
            timer=self.new_timer,
            again=self.resent,
            wait=self.wait,
        )
        tasks.now = self.van.now
        for made in self.observers.tasks:
            made(tasks)
        return tasks

    def call_as(self, origin: int) -> Tasks:
        """Issue tasks as another caller from now on; return its side. Answers to its former tasks are ignored."""
        self.tasks.withdraw()
        self.tasks = self.new_tasks(origin)
        return self.tasks

    def follow(self, policy: Policy) -> None:
        """Use another policy, before this rank takes a role; messages then take neither fast path."""
        self.policy, self._delivered = policy, policy.delivery(self.deliver)
        self.plain = self.direct = self.keeps = False

    def register(self, part: Registration) -> None:
        """Register the callbacks of a part of this rank."""
        self.handlers.update(part.handlers)
        self.controls.update(part.controls)
        self.on_tick += part.ticks
        self.on_glance += part.glances
        self.on_view += part.views

    def unregister(self, part: Registration) -> None:
        """Remove the callbacks of a part of this rank that are still registered."""
        for registered, its in ((self.handlers, part.handlers), (self.controls, part.controls)):
            for command in [each for each, handler in its.items() if registered.get(each) == handler]:
                del registered[command]
        # New lists, since one may be under iteration.
        self.on_tick = [tick for tick in self.on_tick if tick not in part.ticks]
        self.on_glance = [glance for glance in self.on_glance if glance not in part.glances]
        self.on_view = [viewed for viewed in self.on_view if viewed not in part.views]

    def serve_shards(
        self,
        take: Handler,
        idle_work: Callable[[], bool],
        spec_of: Callable[[int], VectorSpec | None],
        table: FastPathTable,
    ) -> None:
        """Pass requests to shards and messages of chains to `take`; the fast path serves those that `table` allows.

        `idle_work`: low-priority work hook; returns True if it did something. `spec_of` returns the specification of
        the vector with a namespace.
        """
        self.shards, self.idle_work, self.spec_of = take, idle_work, spec_of
        if self.plain:
            self._table = table
            self.van.fast_path = None if self.frozen else table

    def new_timer(self) -> Timer | None:
        """Return a retransmission timer; None where no messages are lost."""
        return None if self.resend is None else Timer(self.resend, self._chance)

    @property
    def who(self) -> str:
        """This rank's number and place."""
        return f"rank {self.rank} ({self.place})"

    @property
    def role(self) -> Role | None:
        """This rank's present role; None if it is excluded."""
        return self.view.roles[self.rank]

    # --- sending -----------------------------------------------------------------------------

    def request(self, address: int, message: Message) -> None:
        """Send a request to a rank, or to the primary of shard ~address."""
        dest = self.view.rank_of(address)
        if self.view.roles[dest] is None and message.kind is Kind.PROBE:
            return
        if self.view.roles[dest] is None:
            self.tasks.due_replies.append(self._gone(dest, message))
        else:
            if self.policy.lost(address, message.time):
                self.tasks.due_replies.append(self._gone(dest, message))
            self.outbox.send(dest, message)

    def _gone(self, rank: int, request: Message) -> Message:
        """Return the failure that answers a request to a lost rank."""
        text = f"rank {rank} ({self.layout.places[rank]}) is gone"
        reply = Message(Kind.FAILURE, request.command, rank, meta={"lost": True, "text": text})
        reply.time, reply.epoch = request.time, self.view.epoch
        return reply

    def _encode(self, address: int, message: Message) -> Message:
        """Pass a worker's request to a shard through the filters."""
        if address >= 0 or not self.codec.pushes or self.role is not Role.WORKER:
            return message
        spec = self.spec_of(message.namespace)
        if spec is None or message.command not in _REQUESTS:
            return message
        return self.codec.request(address, self.view.rank_of(address), message, spec)

    def answer(self, origin: int, reply: Message) -> None:
        """Send a reply to a task's caller; replies of shards pass through the filters."""
        receiver = self.view.caller(origin)
        if self.codec.pulls and reply.values is not None and reply.command in _ROWS:
            spec = self.spec_of(reply.namespace)
            assert spec is not None
            reply = self.codec.reply(origin, receiver, reply, spec)
        self.outbox.send(receiver, reply)

    def decoded(self, message: Message) -> bool:
        """Decode a filtered message in place; return whether it can be handled.

        A request that the filters cannot read is refused later; a reply becomes a failure.
        """
        try:
            self.codec.decode(message)
        except FilterError as error:
            # Requests that depend on it wait until it is refused.
            if message.kind is Kind.REQUEST:
                message.error, message.filtered = error, False
                return True
            failure = self.callee.failure(message, error)
            failure.sender, failure.epoch, failure.acked = message.sender, message.epoch, message.acked
            failure.after = message.after
            self.deliver(failure)
            return False
        return True

    def describe(self, error: BaseException) -> dict[str, Any]:
        """Return the metadata of an error of this rank; see `mpips.cluster.error_report`."""
        return describe(error, self.place, self.host)

    # --- receiving ---------------------------------------------------------------------------

    def poll(self) -> bool:
        """Receive at most one message, or do some low-priority work; return whether there was anything to do."""
        outer, self.polling = self.polling, True
        try:
            return self._poll()
        finally:
            self.polling = outer

    def _poll(self) -> bool:
        if self.view.roles[self.rank] is None:
            raise Fenced
        now = self.van.now()
        if now >= self._next_tick:
            self._next_tick = now + TICK
            self._tick(now)
        for turn in self.observers.turn:
            turn()
        message = self.van.receive()
        if message is ANSWER:
            for answered in self.observers.answered:
                answered(self.van.slot)
            self.tasks.answered(self.van.slot)
        elif message is not None:
            for busy in self.observers.busy:
                busy()
            self.take(message)
        elif self.policy.next_event():
            pass
        elif self.frozen or (
            not self.tasks.due_replies and not (self.callee.ready and self.handlers) and not self.idle_work()
        ):
            self.outbox.flush()
            return False
        self.act()
        outbox = self.outbox
        outbox.turn += 1
        if outbox.turn >= TURN:
            self.outbox.flush()
        return True

    def act(self) -> None:
        """Handle the known replies that are due, and execute the requests that may start."""
        while self.tasks.due_replies:
            self.tasks.answer(self.tasks.due_replies.popleft())
        # Without handlers, this rank is about to take another role.
        while self.callee.ready and self.handlers and not self.frozen:
            for begins in self.observers.request_begins:
                begins()
            try:
                self.callee.start(self.handlers)
            finally:
                for ends in self.observers.request_ends:
                    ends()

    def _tick(self, now: float) -> None:
        if self.faults is not None:
            self.faults.poll()
            self.outbox.send_delayed(now)
        if self.resend is not None:
            self.tasks.probe()
        if self.tasks.ahead.count and self.tasks.time - self.tasks.acked > LAG:
            self.request_acknowledgements()
        for ticking in self.on_tick:
            ticking()

    def take(self, message: Message) -> None:
        """Receive an arrived message: deliver, defer or drop it by its epoch and sender."""
        if self.view.roles[message.sender] is None:
            return
        if message.command is Command.BUNDLE:
            for each in unbundle(message):
                self.take(each)
        else:
            self._delivered(message)

    def deliver(self, message: Message) -> None:
        """Deliver a message to its handler."""
        kind, shard = message.kind, message.shard
        if (self.frozen or message.epoch > self.view.epoch) and message.command not in URGENT:
            self._future_messages.append(message)
        elif kind is Kind.CONTROL:
            if message.command in self.controls:
                self.controls[message.command](message)
        elif kind is Kind.CHAIN or (shard >= 0 and kind in _ASKING):
            self.shards(message)
        elif message.filtered and not self.decoded(message):
            return
        elif kind is Kind.REQUEST:
            self.callee.admit(message)
        elif kind is Kind.PROBE:
            self.callee.probed(message)
        elif message.origin != self.tasks.origin:
            # A reply to a request that this rank issued under another origin; tasks of the present one may have
            # the same times.
            return
        elif kind is Kind.MISSING:
            self.tasks.missing(message)
        elif kind is Kind.SEND_KEYS:
            self.savings.sent_keys += self.tasks.send_keys(message)
        else:
            self._take_reply(message)

    def _receive_buffer(self, message: Message) -> NDArray[Any] | None:
        """Return the array that receives the values of a message; None: a new one."""
        if not self.direct or message.kind is not Kind.REPLY or message.command is not Command.PULL:
            # A repeated answer would be written again, perhaps after the caller has reused the array.
            return None
        if message.shard < 0 or message.sender != self.view.chains[message.shard].members[0]:
            return None
        return self.tasks.place(message)

    def _take_reply(self, message: Message) -> None:
        shard = message.shard
        if message.after:
            self._acknowledged(message)
        if shard < 0 or message.sender == self.view.chains[shard].members[0]:
            # A read by a former primary may be older than reads that its successor has answered since.
            self.tasks.answer(message)

    def _failed(self, message: Message) -> None:
        raise RemoteError.from_meta(message.meta, message.sender)

    # --- the view ------------------------------------------------------------------------------

    def adopt(self, view: View) -> None:
        """Adopt a later view: fail or redirect the requests to ranks that are lost or have another role.

        Raises:
            Fenced: this rank is not in it.
        """
        before = self.view
        if view.epoch <= before.epoch:
            return
        # Messages are sent under the view in which they were issued.
        self.outbox.flush()
        self.view, self.van.epoch = view, view.epoch
        if view.roles[self.rank] is None:
            raise Fenced
        works = Role.WORKER in (before.roles[self.rank], view.roles[self.rank])
        if works and view.workers_since != before.workers_since:
            for callback in self.observers.workers:
                callback(view)
        for rank in set(before.alive) - set(view.alive):
            self.outbox.exclude(rank)
            self.departure.record_lost(rank)
            lost = self._gone(rank, Message(Kind.REQUEST, Command.CALL))
            self.tasks.give_up(lost, lambda address, _, rank=rank: address == rank)  # type: ignore[misc]
        if view.roles[self.rank] is not before.roles[self.rank]:
            self.handlers.clear()
        if view.workers_since != before.workers_since:
            self._fail_rounds()
        # Another server may have been the primary in a view that this rank has missed.
        moved = [
            ~shard
            for shard, (old, new) in enumerate(zip(before.chains, view.chains, strict=True))
            if old.members[0] != new.members[0] or new.since > before.epoch + 1
        ]
        for notify in self.on_view:
            notify(before, view)
        self.van.finish_receives()
        self.tasks.redirect(moved, "moved")
        self._take_kept()

    def _take_kept(self) -> None:
        """Take the messages that were kept; those that still have to wait are kept again."""
        kept, self._future_messages = self._future_messages, []
        for message in kept:
            self.take(message)

    def freeze(self) -> None:
        """Execute, answer and acknowledge nothing until `thaw`; messages are kept."""
        self.frozen, self.van.fast_path = True, None

    def thaw(self) -> None:
        """End a freeze."""
        self.frozen, self.van.fast_path = False, self._table
        self._take_kept()

    def _fail_rounds(self) -> None:
        """Fail the aggregated pushes that were issued with the previous worker set."""
        why = Message(Kind.FAILURE, Command.PUSH, meta={"lost": True, "text": "the workers have changed"})
        self.tasks.give_up(why, lambda address, request: address < 0 and request.round != NO_ROUND)
        # Requests at shards that depend on the failed ones must not wait for them any more.
        self.tasks.redirect([~shard for shard in range(len(self.view.chains))], "workers")

    # --- waiting and working -----------------------------------------------------------------

    def wait(self, task: Task) -> Any:
        """Poll until `task` is finished; return its result.

        Raises:
            RemoteError: a part of the task failed on another rank. It is raised at once, since the other parts may
                wait forever.
            WorkerLost: a worker that took part in it has died, and all other parts have ended.
        """
        if task.received < task.expected:
            check_not_forked()
            wait = self.time_use.begin(task)
            try:
                while not task.settled:
                    if not self.poll():
                        self.van.idle()
            finally:
                self.time_use.wait = wait[-1]
            self.outbox.flush()
            self.time_use.count(wait)
        if task.error is not None:
            task.handled = True
            add_caller(task, self.who)
            raise task.error
        return task.values

    def wait_all(self, tasks: Iterable[Task]) -> list[Any]:
        """Wait for each of `tasks`; return their results in order."""
        return [self.wait(task) for task in list(tasks)]

    def wait_until(self, done: Callable[[], bool], cause: str = "") -> None:
        """Poll until `done()`; the time counts as waiting, except for `working` inside callbacks.

        `cause` names the wait in traces.
        """
        check_not_forked()
        wait = self.time_use.begin(cause)
        try:
            while not done():
                if not self.poll():
                    self.van.idle()
        finally:
            self.time_use.wait = wait[-1]
        self.outbox.flush()
        self.time_use.count(wait)

    def waits_for(self) -> str:
        """Describe what this rank waits for, and from which ranks; "" if it does not wait."""
        what = self.time_use.cause
        if isinstance(what, str):
            return what
        at = program_line.describe(what.location)
        whom = sorted(set(map(self.view.rank_of, self.tasks.unanswered(what))))
        names = ", ".join(f"rank {rank} ({self.layout.places[rank]})" for rank in whom)
        then = (
            f"no answer from {names}"
            if whom
            else "not sent yet, since a task that it depends on is unfinished"
        )
        return f"{what.what or 'an answer'}{f' at {at}' if at else ''}: {then}"

    def _acknowledged(self, message: Message) -> None:
        if message.origin != self.tasks.origin:
            return
        for shard, time in message.after:
            self.tasks.ahead.acknowledge(~shard, time)

    def settle(self, since: int) -> None:
        """Wait until tasks issued at `since` or later are finished, and all pushes answered ahead are on all copies.

        Tasks that the program has waited for already cost nothing.

        Raises:
            RemoteError, WorkerLost: a task has failed, and the program has not handled its error.
        """
        while self.tasks.time > since and (tasks := self.tasks.unhandled(since)):
            for task in tasks:
                self.wait(task)
        self.wait_until(self._is_settled, "copies of its pushes")

    def _is_settled(self) -> bool:
        self.request_acknowledgements()
        return not self.tasks.ahead.count

    def request_acknowledgements(self) -> None:
        """Request, once for each push that was answered ahead, its acknowledgement as soon as it is on all copies."""
        named: dict[int, list[tuple[int, int]]] = {}
        for address, time in self.tasks.ahead.newly():
            named.setdefault(self.view.rank_of(address), []).append((~address, time))
        for dest, pushes in named.items():
            request = Message(
                Kind.CONTROL, Command.ASK_ACKNOWLEDGED, origin=self.tasks.origin, after=tuple(pushes)
            )
            self.outbox.send(dest, request)

    def account(self) -> dict[str, Any]:
        """Return the accounts of this node: bytes, messages, seconds, `cpu` time and peak `memory` of its process.

        On Linux also its present proportional (`pss`) and unshared (`private`) memory, in bytes.
        """
        filters = self.savings.by_filter(self.codec.pushes, self.codec.pulls)
        return {
            "sent": self.van.sent_bytes,
            "messages": self.van.sent_messages,
            "received": self.van.received_bytes,
            "waited": self.time_use.waited,
            "worked": self.time_use.worked,
            "sent_again": dict(self.resent),
            **process_usage(),
            **self._held(),
            "filters": {
                name: {role: asdict(each) for role, each in by.items()} for name, by in filters.items()
            },
        }

    def step(self, step: int) -> None:
        """Begin a step of the algorithm; injected faults may be due."""
        if self.faults is not None:
            self.faults.step(step)

    def poll_between(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and poll between them, so that a long loop can be stopped."""
        for item in items:
            self.take_arrived()
            yield item

    def take_arrived(self) -> None:
        """Handle all messages that have arrived, inside a program's call."""
        check_not_forked()
        for begins in self.observers.program_poll_begins:
            begins()
        self.van.glance()
        try:
            self.policy.poll_in_program(self.poll)
            for glance in self.on_glance:
                glance()
        # The program may continue after an error.
        finally:
            for ends in self.observers.program_poll_ends:
                ends()
        self.outbox.flush()

    # --- leaving -----------------------------------------------------------------------------

    def control(self, dest: int, command: Command, meta: dict[str, Any]) -> None:
        """Send a control message."""
        self.outbox.send(dest, Message(Kind.CONTROL, command, meta=meta))

"""One trial of the fault campaign on the twin: a random cluster, a random program, and its exact result.

Every rank's pushes, pulls, rounds, calls and views are recorded in one history (`mpips.history`), whose order is that
of the events: all ranks of a twin are greenlets of one process, which run one at a time.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from mpips.bench._runs import process_messages
from mpips.bench.failures._fault_injector import Disturbance, FaultInjector
from mpips.bench.failures._witness import Witness
from mpips.bench.failures._workload import (
    EXTENT,
    HOT_KEYS,
    PER_ROUND,
    ROUNDS,
    SINGLES,
    Workload,
    push_keys,
    round_keys,
)
from mpips.cluster.view import NOBODY
from mpips.errors import WorkerLost
from mpips.history.check import Violation, acknowledged, check, digit, unended
from mpips.history.events import Completed, Concluded, Event, Final, Sink
from mpips.history.recorder import HistoryRecorder
from mpips.membership import specification
from mpips.rank.simulation import Internals, simulate
from mpips.scheduler.scheduler import Cluster
from mpips.server.shard import Shard
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec, call
from mpips.tasks.task import Task
from mpips.transport.network_faults import random_arrivals, random_delays
from mpips.worker.worker import Context

HORIZON = 10.0
"""Seconds of simulated time after which a trial counts as hung."""
TICK = 0.006
"""Steps of simulated time when nothing else happens (s): above the 5 ms after which a node checks its timers."""
MOST_ROUNDS = 18
"""Numbers of rounds that are pulled."""
HOUR, DRIFT = 3600.0, 0.1
"""Seconds by which a time of day jumps, and the largest share by which a clock is wrong."""
PATIENCE, DETECTION = 0.12, 0.01
"""Seconds of simulated time until a stopped rank, and a killed one, is detected."""


class WrongResult(AssertionError):
    """The parameters, or values that a rank received, differ from what was pushed."""


@call("faults_bump")
def bump(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Count the calls of this function, on each shard."""
    segment.settings["bumps"] = int(segment.settings.get("bumps", 0)) + 1
    return {"bumps": segment.settings["bumps"]}


@call("faults_bumps", reads=True)
def bumps(segment: Segment, args: dict[str, Any]) -> dict[str, Any]:
    """Return how often `bump` was called."""
    return {"bumps": int(segment.settings.get("bumps", 0))}


class Step(NamedTuple):
    """A step of the program: a call of all workers (rounds), a call of all shards, a checkpoint, or a pause (s)."""

    kind: str
    amount: float


@dataclass(frozen=True)
class Plan:
    """A trial, drawn from its seed."""

    seed: int
    servers: int
    workers: int
    spares: int
    schedulers: int
    replicas: int
    virtual_servers: int
    hosts: int
    """The number of hosts; the ranks are dealt to them in turn."""
    compacted_every: int
    """The number of entries of the scheduler's journal that a snapshot replaces."""
    delay: float
    drop: float
    duplicate: float
    loss: float
    """The probability that a message of a killed rank is lost with it if it was not received.

    It is 0 if stopped ranks continue: one that was excluded meanwhile must be informed."""
    rates: tuple[float, ...]
    """By rank: the seconds of its clocks in a second."""
    steps: tuple[Step, ...]
    events: tuple[Disturbance, ...]
    bandwidth: float
    """Bytes of copies of shards per second; 0: unlimited."""

    def text(self) -> str:
        """Describe the cluster and its events in one line."""
        shape = f"{self.schedulers}+{self.servers}+{self.workers}+{self.spares} ranks on {self.hosts} hosts"
        events = "; ".join(f"{event.what} at message {event.after}" for event in self.events)
        return f"{shape} (scheduler, server, worker, spare), replicas {self.replicas}: {events or 'nothing'}"


def plan(seed: int) -> Plan:
    """Draw a trial."""
    rng = random.Random(f"faults/{seed}")
    servers, workers, spares = rng.randint(1, 4), rng.randint(1, 4), rng.randint(0, 2)
    schedulers, drifts = rng.randint(1, 2), rng.random() < 0.3
    ranks = schedulers + servers + workers + spares
    lossy, slow = rng.random() < 0.3, rng.random() < 0.4
    steps = [
        Step(kind, rng.randint(1, 4) if kind == "work" else rng.choice((0.004, 0.04)))
        for kind in rng.choices(("work", "bump", "save", "rest"), (5, 2, 1, 1), k=rng.randint(2, 4))
    ]
    events = tuple(_events(rng))
    more = random.Random(f"faults/steps/{seed}")
    bandwidth = 0.0
    if more.random() < 0.5:
        events += tuple(_aimed(more))
        bandwidth = more.choice((0.0, 1e5, 1e6))
    return Plan(
        seed, servers, workers, spares, schedulers, rng.randint(0, min(2, servers - 1)), rng.randint(1, 2),
        rng.randint(1, 4), rng.choice((8, 32, 256)),
        rng.choice((0.0005, 0.003)) if slow else 0.0,
        rng.uniform(0, 0.05) if lossy else 0.0, rng.uniform(0, 0.1) if lossy else 0.0,
        0.0 if any(each.duration for each in events) else rng.choice((0.0, 0.5, 1.0)),
        tuple(rng.uniform(1 - DRIFT, 1 + DRIFT) if drifts else 1.0 for _ in range(ranks)),
        (Step("work", 2), *steps), events, bandwidth,
    )  # fmt: skip


def _events(rng: random.Random) -> Iterable[Disturbance]:
    after = 0
    for number in range(rng.choice((1, 2, 2, 3))):
        # Often while the loss before is not dealt with.
        soon = number > 0 and rng.random() < 0.5
        after = after + rng.randrange(40) if soon else rng.randrange(20, 400)
        act = rng.choice(("kill", "kill", "kill", "stop", "split", "split"))
        roles = ("server", "sender", "scheduler", "worker", "spare", "host", "host")
        role = rng.choice((*roles, "minority", "minority") if act == "split" else roles)
        duration: float | None = None
        if act == "stop":
            duration = rng.choice((None, PATIENCE / 3, 2 * PATIENCE, 2 * PATIENCE))
            act = rng.choice(("stop", "suspend")) if duration and role == "host" else act
        way, times = "both ways", 1
        if act == "split":
            way, times = rng.choice(("both ways", "both ways", "from it", "to it")), rng.choice((1, 1, 1, 6))
            duration = PATIENCE * rng.choice((1 / 3, 0.9, 2, 2, 5) if times == 1 else (0.2, 0.6, 1.2))
        count = rng.choice((1, 1, 1, 2))
        instant = "CHAIN" if role == "sender" else ""
        yield Disturbance(
            f"{act} {role}", after, act, role, count, duration, rng.random(), way, times, instant
        )
    for _ in range(rng.choice((0, 1, 1, 2))):
        act, role = rng.choice(("join", "leave")), rng.choice(("server", "server", "worker"))
        yield Disturbance(f"{act} {role}", rng.randrange(20, 350), act, role, 1, None, rng.random())
    if rng.random() < 0.2:
        hours = rng.choice((-HOUR, HOUR))
        yield Disturbance(
            "jump of the time of day", rng.randrange(400), "jump", "any", 1, hours, rng.random()
        )


INSTANTS = (
    "CHAIN", "VIEW", "VIEW_SEEN", "ASK_VIEW", "VIEWS", "PROPOSE", "ACCEPTED", "LOG", "LOGGED", "COPY_CHUNK",
    "COPY_COMPLETE", "DRAINED", "CALL", "EXPORT", "ACKNOWLEDGED",
)  # fmt: skip
"""Messages at whose sending a step of a protocol begins or ends."""
ELECTIONS = ("ASK_VIEW", "VIEWS", "PROPOSE", "ACCEPTED")


def _aimed(rng: random.Random) -> Iterable[Disturbance]:
    """Draw faults at steps of protocols, whatever their number of messages."""
    for _ in range(rng.choice((1, 1, 2))):
        after = rng.choice((0, 0, rng.randrange(300)))
        kind = rng.choice(("step", "step", "step", "folder", "end"))
        if kind == "step":
            act, role = (
                rng.choice(("kill", "kill", "stop", "suspend", "split")),
                rng.choice(("sender", "receiver")),
            )
            duration = None if act == "kill" else PATIENCE * rng.choice((2, 2, 5))
            way = rng.choice(("both ways", "both ways", "from it", "to it"))
            instant, passing = rng.choice(INSTANTS), rng.choice((0, 0, 1, 2, 4))
            if instant in ELECTIONS and rng.random() < 0.7:
                yield Disturbance("kill scheduler", after, "kill", "scheduler", 1, None, rng.random())
            what = f"{act} {role} at {instant}"
            yield Disturbance(what, after, act, role, 1, duration, rng.random(), way, 1, instant, passing)
        elif kind == "folder":
            # The network fails at the same time, often so that each side has half of the votes.
            way = rng.choice(("both ways", "both ways", "from it", "to it"))
            lasting = PATIENCE * rng.choice((2, 5))
            yield Disturbance("split host", after, "split", "host", 1, lasting, rng.random(), way)
            out = lasting * rng.choice((0.5, 1, 2))
            yield Disturbance("unreach folder", after, "unreach", "everybody", 1, out, rng.random())
        else:
            lasting = PATIENCE * rng.choice((2, 5))
            yield Disturbance(
                "suspend scheduler at END", 0, "suspend", "scheduler", 1, lasting, rng.random(), instant="END"
            )


class Client:
    """The worker: random pushes, pulls and rounds."""

    def __init__(self, context: Context, seed: int, workload: Workload) -> None:
        self.context, self.node, self.seed, self.workload = context, context.node, seed, workload
        self._last: tuple[int, Task] | None = None
        # While a call is executed: the draws of its requests; whether those that are issued while it waits only read,
        # since a pull waits for earlier pushes; and the last one of them.
        self._reads = False
        self._rng: random.Random | None = None
        self._tick: Task | None = None
        self.node.on_tick.append(self._go_on)

    def go(self, rounds: list[int], attempt: int) -> None:
        """Push these rounds, with random requests between them."""
        rng = self._rng = random.Random(f"{self.seed}/{attempt}/{self.node.rank}")
        self._reads = rng.random() < 0.5
        aggregated: list[Task] = []
        singles: list[Task] = []
        try:
            for number in rounds:
                aggregated.append(self._round(number, rng.random() < 0.6))
                for _ in range(rng.randrange(4)):
                    request = rng.choice(
                        (self._push, self._push, self._push_pull, self._pull, self._pull_round)
                    )
                    singles.append(request(rng))
                if rng.random() < 0.3:
                    self.node.wait(rng.choice(aggregated + singles))
            self.node.wait_all(aggregated)
        except WorkerLost:
            self._end(singles)
            raise
        self._end(singles)

    def _end(self, singles: list[Task]) -> None:
        """Wait for all other requests of a call."""
        self._rng = None
        self.node.wait_all([*singles, self._tick] if self._tick is not None else singles)

    def _go_on(self) -> None:
        """Push and pull also while a call waits: during a fault, and until it is dealt with."""
        if self._rng is not None and (self._tick is None or self._tick.done):
            requests = (self._pull,) if self._reads else (self._push, self._pull)
            self._tick = self._rng.choice(requests)(self._rng)
            self._tick.handled = True

    def _round(self, number: int, pulls: bool) -> Task:
        vector, workers = self.context.vectors[ROUNDS], self.node.view.workers
        # A rank that is no worker any more is told so by the push.
        place = workers.index(self.node.rank) if self.node.rank in workers else 0
        keys, rows = np.array(round_keys(number), np.uint64), np.full(PER_ROUND, digit(place), np.int64)
        return (vector.push_pull if pulls else vector.push)(keys, rows, round=number)

    def _push(self, rng: random.Random) -> Task:
        number, keys, rows = self.workload.push(rng)
        self._last = (number, self.context.vectors[SINGLES].push(keys, rows))
        return self._last[1]

    def _push_pull(self, rng: random.Random) -> Task:
        number, keys, rows = self.workload.push(rng)
        self._last = (number, self.context.vectors[SINGLES].push_pull(keys, rows))
        return self._last[1]

    def _pull(self, rng: random.Random) -> Task:
        """Pull all hot keys, and those of the last push; often with a dependency on it."""
        number, last = self._last or (-1, None)
        after = [last] if last is not None and rng.random() < 0.5 else []
        own = push_keys(number) if last is not None else ()
        keys = np.array(sorted({*HOT_KEYS, *own}), np.uint64)
        return self.context.vectors[SINGLES].pull(keys, after=after)

    def _pull_round(self, rng: random.Random) -> Task:
        """Pull the keys of some rounds."""
        numbers = rng.sample(range(MOST_ROUNDS), 3)
        keys = sorted(each for number in numbers for each in round_keys(number))
        return self.context.vectors[ROUNDS].pull(np.array(keys, np.uint64))


class TrialProgram:
    """The scheduler's part of a trial on one rank; a successor runs it again from its start."""

    def __init__(self, plan: Plan, sink: Sink, cluster: Cluster) -> None:
        self.plan, self.sink, self.cluster = plan, sink, cluster
        self._attempt, self._round, self._bumps = 0, 0, 0
        self._lost = False

    def run(self) -> dict[str, dict[int, int]]:
        """Do all steps; return every vector at the end."""
        for name in (ROUNDS, SINGLES):
            self._retry(partial(self._create, name))
        at = 0
        while at < len(self.plan.steps):
            if (later := self.cluster.compact(partial(self._state, at))) is not None:
                at = later["at"]
                self._attempt, self._round, self._bumps = later["state"]
            step, at = self.plan.steps[at], at + 1
            if step.kind == "work":
                self._retry(partial(self._work, int(step.amount)))
            elif step.kind == "bump":
                self._bump()
            elif step.kind == "save":
                self._retry(partial(self._save, at))
            else:
                process_messages(self.cluster.node, step.amount)
        counted = self.cluster.servers.call("faults_bumps", vector=self.cluster.vectors[SINGLES])
        if any(each["bumps"] != self._bumps for each in counted):
            raise WrongResult(f"server calls: {self._bumps} were made, {counted} were counted")
        return {name: _read(self.cluster, name) for name in (ROUNDS, SINGLES)}

    def _state(self, at: int) -> dict[str, Any]:
        """Return the state before step `at`."""
        return {"at": at, "state": (self._attempt, self._round, self._bumps)}

    def _retry(self, do: Callable[[], None]) -> None:
        """Do a step with the workers, and repeat it with the remaining workers as long as some die."""
        while True:
            try:
                if self._lost or self.cluster.renewed():
                    self.cluster.regroup()
                    self._lost = False
                return do()
            except WorkerLost:
                self._lost = True

    def _create(self, name: str) -> None:
        if name not in self.cluster.vectors:
            spec = VectorSpec(name, dtype="int64", extent=EXTENT, aggregate=name == ROUNDS)
            self.cluster.create_vector(spec)

    def _work(self, count: int) -> None:
        rounds = list(range(self._round, self._round + count))
        self._round += count
        self._attempt += 1
        self.cluster.workers.call("go", {"rounds": rounds, "attempt": self._attempt})
        self.sink(Completed(self.cluster.node.rank, ROUNDS, tuple(rounds)))

    def _save(self, number: int) -> None:
        """Begin a checkpoint; it may be given up when ranks die."""
        self.cluster.checkpoints = self.cluster.folder.path / "checkpoints"
        self.cluster.checkpoint(number, {})

    def _bump(self) -> None:
        self._bumps += 1
        for answer in self.cluster.servers.call("faults_bump", vector=self.cluster.vectors[SINGLES]):
            if answer["bumps"] != self._bumps:
                raise WrongResult(f"server call {self._bumps} was answered as number {answer['bumps']}")


def _read(cluster: Cluster, name: str) -> dict[int, int]:
    found: dict[int, int] = {}
    for keys, rows in cluster.export(cluster.vectors[name]):
        found.update(zip(keys.tolist(), rows[:, 0].tolist(), strict=True))
    return found


@dataclass
class Outcome:
    """The outcome of a trial."""

    seed: int
    error: str = ""
    violations: list[Violation] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)
    """The number of faults of each kind."""
    updates: int = 0
    """Keys of pushes and rounds that were acknowledged."""
    events: int = 0
    """Length of the history."""
    survivors: int = 0
    uninformed: int = 0
    """Continued ranks that wait forever: every rank that knew of their exclusion had died."""
    ranks: int = 0

    @property
    def ok(self) -> bool:
        """Whether the run ended, and its history keeps all promises."""
        return not self.error and not self.violations

    def text(self) -> str:
        """Describe what was wrong."""
        return "; ".join([*([self.error] if self.error else []), *map(": ".join, self.violations[:3])])


def differing(internals: Internals) -> list[Violation]:
    """Compare the members of each chain at the end: those with the same number of changes must have the same rows."""
    found = []
    view = internals.view
    for number, chain in enumerate(view.chains if view is not None else ()):
        links = [internals.servers[rank].chains.links.get(number) for rank in chain.members]
        shards = [link.shard for link in links if link is not None and link.shard is not None]
        for other in shards[1:]:
            if other.changes == shards[0].changes and _rows(other) != _rows(shards[0]):
                text = f"shard {number} of ranks {chain.members} differs after {other.changes} changes"
                found.append(Violation("copies", text))
    return found


def _rows(shard: Shard) -> list[dict[int, int]]:
    """Return the rows of each vector that are not 0."""
    exported = (hosted.segment.in_slot_order() for hosted in shard.vectors.values())
    return [
        {key: row for key, row in zip(each.keys.tolist(), each.values[:, 0].tolist(), strict=True) if row}
        for each in exported
    ]


def run(seed: int, report: Callable[[str], object] = lambda line: None) -> Outcome:
    """Run one trial; `report` receives the events of the cluster."""
    trial, workload, internals = plan(seed), Workload(), Internals()
    history: list[Event] = []
    delays = random_delays(seed, delay=trial.delay, drop=trial.drop, duplicate=trial.duplicate)
    witness = Witness(internals, PATIENCE, Client.go.__name__, trial.loss > 0)
    injector = FaultInjector(trial.events, delays, internals, report, witness)
    outcome = Outcome(seed, ranks=trial.servers + trial.workers + trial.spares + trial.schedulers)
    try:
        simulate(
            injector.until_end(lambda cluster: TrialProgram(trial, history.append, cluster).run()),
            lambda context: Client(context, seed, workload),
            servers=trial.servers, workers=trial.workers, spares=trial.spares, schedulers=trial.schedulers,
            replicas=trial.replicas, virtual_servers=trial.virtual_servers, seed=seed, delays=injector,
            horizon=HORIZON, patience=PATIENCE, detection=DETECTION, tick=TICK,
            arrives=random_arrivals(seed, trial.loss), internals=internals,
            hosts=[f"h{rank % trial.hosts}" for rank in range(outcome.ranks)], compacted_every=trial.compacted_every,
            bandwidth=trial.bandwidth, rates=dict(enumerate(trial.rates)),
            attach=lambda node: HistoryRecorder(node, history.append),
        )  # fmt: skip
        if not internals.results:
            raise WrongResult("no rank finished the program")
        # A rank that was split off as a spare may have been excluded as a worker.
        remaining = internals.view.alive if internals.view is not None else ()
        unanswered = [each for each in unended(history) if each.rank in remaining]
        if unanswered and not injector.worker_hit:
            raise WrongResult(f"{len(unanswered)} operations of living workers were never answered")
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {' '.join(str(error).split())}"
    for counts in internals.results:
        history.append(Concluded(NOBODY))
        history += [Final(NOBODY, name, tuple(rows), tuple(rows.values())) for name, rows in counts.items()]
    witness.end()
    outcome.violations = check(history) + witness.found
    records = [specification.published(*each, trial.replicas) for each in internals.published]
    outcome.violations += [Violation("specification", each) for each in specification.wrong_in(records)]
    if not outcome.error:
        outcome.violations += differing(internals)
    outcome.faults = injector.done + Counter(
        {kind: count for kind, count in injector.network.items() if count}
    )
    outcome.updates, outcome.events = acknowledged(history), len(history)
    outcome.uninformed = len(internals.uninformed)
    outcome.survivors = len(internals.view.alive) if internals.view is not None else 0
    return outcome

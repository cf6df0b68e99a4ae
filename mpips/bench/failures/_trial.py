"""One trial of the fault campaign on the twin: a random cluster, a random program, and its exact result.

The program's workers push ones, so every key of a vector counts its updates.

All ranks of a twin are greenlets of one process, which run one at a time, so one `Ledger` records what was issued and
what was acknowledged.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips.bench._runs import process_messages
from mpips.bench.failures._fault_injector import Event, FaultInjector
from mpips.bench.failures._ledger import (
    EXTENT,
    HOT,
    HOT_KEYS,
    ROUNDS,
    SINGLES,
    Ledger,
    key,
    push_keys,
    round_keys,
)
from mpips.errors import WorkerLost
from mpips.rank.simulation import Internals, simulate
from mpips.scheduler.scheduler import Cluster
from mpips.storage.segment import Segment
from mpips.storage.updates import VectorSpec, call
from mpips.tasks.task import Task
from mpips.transport.network_faults import random_arrivals, random_delays
from mpips.worker.worker import Context

HORIZON = 10.0
"""Seconds of simulated time after which a trial counts as hung."""
TICK = 0.004
"""Steps of simulated time when nothing else happens (s); a node checks its timers every 5 ms."""
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
    steps: tuple[Step, ...]
    events: tuple[Event, ...]

    def text(self) -> str:
        """Describe the cluster and its events in one line."""
        shape = f"{self.schedulers}+{self.servers}+{self.workers}+{self.spares} ranks on {self.hosts} hosts"
        events = "; ".join(f"{event.what} at message {event.after}" for event in self.events)
        return f"{shape} (scheduler, server, worker, spare), replicas {self.replicas}: {events or 'nothing'}"


def plan(seed: int) -> Plan:
    """Draw a trial."""
    rng = random.Random(f"faults/{seed}")
    servers, workers, spares = rng.randint(1, 4), rng.randint(1, 4), rng.randint(0, 2)
    lossy, slow = rng.random() < 0.3, rng.random() < 0.4
    steps = [
        Step(kind, rng.randint(1, 5) if kind == "work" else rng.choice((0.004, 0.04)))
        for kind in rng.choices(("work", "bump", "save", "rest"), (5, 2, 1, 1), k=rng.randint(3, 6))
    ]
    events = tuple(_events(rng))
    return Plan(
        seed, servers, workers, spares, rng.randint(1, 2), rng.randint(0, min(2, servers - 1)), rng.randint(1, 2),
        rng.randint(1, 4), rng.choice((8, 32, 256)),
        rng.choice((0.0005, 0.003)) if slow else 0.0,
        rng.uniform(0, 0.05) if lossy else 0.0, rng.uniform(0, 0.1) if lossy else 0.0,
        0.0 if any(each.duration for each in events) else rng.choice((0.0, 0.5, 1.0)),
        (Step("work", 2), *steps), events,
    )  # fmt: skip


def _events(rng: random.Random) -> Iterable[Event]:
    after = 0
    for number in range(rng.choice((1, 2, 2, 3))):
        # Often while the loss before is not dealt with.
        soon = number > 0 and rng.random() < 0.5
        after = after + rng.randrange(40) if soon else rng.randrange(20, 700)
        role = rng.choice(("server", "server", "scheduler", "worker", "spare", "host", "host"))
        act = rng.choice(("kill", "kill", "kill", "stop"))
        duration = None
        if act == "stop":
            duration = rng.choice((None, PATIENCE / 3, 2 * PATIENCE, 2 * PATIENCE))
        count = rng.choice((1, 1, 1, 2))
        yield Event(f"{act} {role}", after, act, role, count, duration, rng.random())
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        act, role = rng.choice(("join", "leave")), rng.choice(("server", "worker"))
        yield Event(f"{act} {role}", rng.randrange(20, 600), act, role, 1, None, rng.random())


class Client:
    """The worker: random pushes, pulls and rounds, and checks of what it reads."""

    def __init__(self, context: Context, seed: int, ledger: Ledger) -> None:
        self.context, self.node, self.seed, self.ledger = context, context.node, seed, ledger
        # The minimum values of the hot keys, by answers.
        self._floor: NDArray[np.int64] = np.zeros(HOT, np.int64)
        # Whether the push of a key was acknowledged.
        self._own: dict[int, bool] = {}
        self._last: tuple[int, Task] | None = None
        self._wrong: list[str] = []

    def go(self, rounds: list[int], attempt: int, workers: int, floor: list[int]) -> dict[str, Any]:
        """Push these rounds, with random requests between them; return the known minimum values of the hot keys."""
        rng = random.Random(f"{self.seed}/{attempt}/{self.node.rank}")
        self._floor = np.maximum(self._floor, np.array(floor, np.int64))
        aggregated: list[Task] = []
        singles: list[Task] = []
        try:
            for number in rounds:
                aggregated.append(self._round(number, workers, rng.random() < 0.6))
                for _ in range(rng.randrange(4)):
                    singles.append(rng.choice((self._push, self._push, self._push_pull, self._pull))(rng))
                if rng.random() < 0.3:
                    self.node.wait(rng.choice(aggregated + singles))
            self.node.wait_all(aggregated)
        except WorkerLost:
            self.node.wait_all(singles)
            raise
        self.node.wait_all(singles)
        if self._wrong:
            raise WrongResult("; ".join(self._wrong[:3]))
        return {"floor": self._floor.tolist()}

    def _round(self, number: int, workers: int, pulls: bool) -> Task:
        vector = self.context.vectors[ROUNDS]
        keys = np.array(sorted({*HOT_KEYS, *round_keys(number)}), np.uint64)
        ones = np.ones(len(keys), np.int64)
        mine = np.isin(keys, np.array(round_keys(number), np.uint64))

        def done(task: Task) -> None:
            if task.error is not None:
                return
            if pulls and (task.result()[mine] != workers).any():
                self._wrong.append(f"round {number} answered {task.result()[mine].tolist()}, not {workers}")

        push = vector.push_pull if pulls else vector.push
        return push(keys, ones, round=number).then(done)

    def _keys(self, rng: random.Random) -> tuple[int, int, NDArray[np.uint64]]:
        """Draw the keys of the next push: its number, the index of its hot key among all hot ones, all keys sorted."""
        number, hot = len(self.ledger.pushes), rng.randrange(HOT)
        self.ledger.pushes.append(False)
        return number, hot, np.array(sorted((key(hot + 1), *push_keys(number))), np.uint64)

    def _push(self, rng: random.Random) -> Task:
        number, _, keys = self._keys(rng)
        task = self.context.vectors[SINGLES].push(keys, np.ones(3, np.int64))
        return self._note(number, task)

    def _push_pull(self, rng: random.Random) -> Task:
        number, hot, keys = self._keys(rng)
        at = int(np.flatnonzero(keys == key(hot + 1))[0])
        floor = int(self._floor[hot])

        def done(task: Task) -> None:
            if task.error is None:
                row = task.result()
                self._check_hot(hot, int(row[at]), floor + 1)
                if np.delete(row, at).tolist() != [1, 1]:
                    self._wrong.append(f"push {number} answered {row.tolist()}")

        task = self.context.vectors[SINGLES].push_pull(keys, np.ones(3, np.int64))
        return self._note(number, task).then(done)

    def _note(self, number: int, task: Task) -> Task:
        self._last = (number, task)

        def done(task: Task) -> None:
            if task.error is None:
                self.ledger.pushes[number] = True

        return task.then(done)

    def _pull(self, rng: random.Random) -> Task:
        """Pull all hot keys, and those of its last push; a dependency on the push makes the result certain."""
        number, last = self._last or (-1, None)
        after = [last] if last is not None and rng.random() < 0.5 else []
        own = sorted(push_keys(number)) if last is not None else []
        certain = last is not None and last.error is None and (bool(after) or last.done)
        keys = np.array(sorted({*HOT_KEYS, *own}), np.uint64)
        places = {int(k): at for at, k in enumerate(keys)}
        floor = self._floor.copy()

        def done(task: Task) -> None:
            if task.error is not None:
                return
            for hot in range(HOT):
                self._check_hot(hot, int(task.result()[places[key(hot + 1)]]), int(floor[hot]))
            found = [int(task.result()[places[each]]) for each in own]
            if any(n > 1 or (certain and n != 1) for n in found):
                self._wrong.append(f"a pull after push {number} reads {found}")

        return self.context.vectors[SINGLES].pull(keys, after=after).then(done)

    def _check_hot(self, hot: int, value: int, least: int) -> None:
        if value < least:
            self._wrong.append(f"key {key(hot + 1)} is stale: {value} after {least}")
        self._floor[hot] = max(self._floor[hot], value)


class TrialProgram:
    """The scheduler's part of a trial on one rank; a successor runs it again from its start."""

    def __init__(self, plan: Plan, ledger: Ledger, cluster: Cluster) -> None:
        self.plan, self.ledger, self.cluster = plan, ledger, cluster
        self._attempt, self._round, self._bumps, self._floor = 0, 0, 0, [0] * HOT
        self._lost = False

    def run(self) -> dict[str, dict[int, int]]:
        """Do all steps; return every vector at the end."""
        for name in (ROUNDS, SINGLES):
            self._retry(partial(self._create, name))
        at = 0
        while at < len(self.plan.steps):
            if (later := self.cluster.compact(partial(self._state, at))) is not None:
                at = later["at"]
                self._attempt, self._round, self._bumps, self._floor = later["state"]
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
        return {"at": at, "state": (self._attempt, self._round, self._bumps, self._floor)}

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
        workers = len(self.cluster.workers)
        self.ledger.rounds.update(dict.fromkeys(rounds, workers))
        args = {"rounds": rounds, "attempt": self._attempt, "workers": workers, "floor": self._floor}
        answers = self.cluster.workers.call("go", args)
        self.ledger.completed.update(rounds)
        for answer in answers:
            self._floor = [max(pair) for pair in zip(self._floor, answer["floor"], strict=True)]

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
    faults: Counter[str] = field(default_factory=Counter)
    """The number of faults of each kind."""
    lost: int = 0
    doubled: int = 0
    updates: int = 0
    """Keys of pushes and rounds that were acknowledged."""
    survivors: int = 0
    uninformed: int = 0
    """Continued ranks that wait forever: every rank that knew of their exclusion had died."""
    ranks: int = 0

    @property
    def ok(self) -> bool:
        """Whether the run ended, and every update was applied exactly once."""
        return not self.error


def run(seed: int, report: Callable[[str], object] = lambda line: None) -> Outcome:
    """Run one trial; `report` receives the events of the cluster."""
    trial, ledger, internals = plan(seed), Ledger(), Internals()
    delays = random_delays(seed, delay=trial.delay, drop=trial.drop, duplicate=trial.duplicate)
    injector = FaultInjector(trial.events, delays, internals, report)
    outcome = Outcome(seed, ranks=trial.servers + trial.workers + trial.spares + trial.schedulers)
    try:
        counts = simulate(
            injector.until_end(lambda cluster: TrialProgram(trial, ledger, cluster).run()),
            lambda context: Client(context, seed, ledger),
            servers=trial.servers, workers=trial.workers, spares=trial.spares, schedulers=trial.schedulers,
            replicas=trial.replicas, virtual_servers=trial.virtual_servers, seed=seed, delays=injector,
            horizon=HORIZON, patience=PATIENCE, detection=DETECTION, tick=TICK,
            arrives=random_arrivals(seed, trial.loss), internals=internals,
            hosts=[f"h{rank % trial.hosts}" for rank in range(outcome.ranks)], compacted_every=trial.compacted_every,
        )  # fmt: skip
        if counts is None:
            raise WrongResult("no rank finished the program")
        ledger.compare(counts)
        if not injector.worker_hit and not all(ledger.pushes):
            raise WrongResult(f"{ledger.pushes.count(False)} pushes of living workers were never answered")
        if ledger.lost or ledger.doubled:
            raise WrongResult("; ".join([*ledger.lost[:2], *ledger.doubled[:2]]))
    except Exception as error:
        outcome.error = f"{type(error).__name__}: {' '.join(str(error).split())}"
    outcome.faults = injector.done + Counter(
        {kind: count for kind, count in injector.network.items() if count}
    )
    outcome.lost, outcome.doubled = len(ledger.lost), len(ledger.doubled)
    outcome.updates = 3 * sum(ledger.pushes) + sum(
        (HOT + 4) * ledger.rounds[each] for each in ledger.completed
    )
    outcome.uninformed = len(internals.uninformed)
    outcome.survivors = len(internals.view.alive) if internals.view is not None else 0
    return outcome

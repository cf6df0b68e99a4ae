"""The online learners: FTRL-proximal, AdaGrad and SGD on mini-batches, in the order of the data.

    scheduler                        worker r                                     server
    until every part is read:        for each mini-batch, at most tau ahead:      update w by the gradient
        so many mini-batches each        pull w of its keys
        record each part's progress      g = gradient; push g

Under sequential consistency a step is one mini-batch of every worker, and the servers sum the gradients in worker
order; otherwise every push is applied separately when it arrives. Then a gradient is of weights that lack the others'
steps of meanwhile, which are about two mini-batches of every worker. At the start, where steps are long and all point
the same way, the weights would go too far by as many steps, and FTRL and AdaGrad take all later steps too short for the
gradients that follow from it. So the first calls are of few mini-batches, of few workers: a gradient lacks at most a
twentieth of the steps so far (`most_at_once`). What a delay costs falls with the steps that are taken (Agarwal and
Duchi, NIPS 2011).

The workload table has the worker of each part, and the number of its mini-batches whose push was applied. Another
worker continues a lost worker's part from there. The lost worker's mini-batches of the present call are repeated, and
so is a step of all workers that only some servers had applied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mpips import (
    ANY,
    COUNT,
    NO_ROUND,
    NUMBER,
    CheckpointError,
    Cluster,
    ConsistencySpec,
    Context,
    Each,
    KeyList,
    PushPull,
    Task,
    VectorSpec,
    WorkerLost,
    Workload,
    progress,
    regroup,
    retry_on_loss,
    schema_error,
    unmet,
)
from mpips import keys as key_arrays
from mpips.data import HASHED_FORMATS, Examples, Source, Tally, format_of
from mpips.jobs.sparse_lr import kernels
from mpips.jobs.sparse_lr.assignment import Assignment
from mpips.jobs.sparse_lr.evaluate import Data, check_positive, other_keys, parts_of, say
from mpips.jobs.sparse_lr.minibatches import Minibatch, Minibatches, Stream
from mpips.jobs.sparse_lr.proximal import exact_total

COLUMNS = (
    progress.Column("pass", "pass", 5),
    progress.Column("seconds", "seconds", 8, progress.seconds),
    progress.Column("examples", "examples", 10, progress.si),
    progress.Column("mean loss", "mean loss", 10, progress.significant(5)),
    progress.Column("nonzeros", "nonzeros", 9, progress.si),
    progress.Column("examples/s", "examples/s", 10, progress.si),
    progress.Column("waiting", "waiting", 11, progress.shares),
    progress.Column("sent", "sent", 9, progress.bytes_si),
    progress.Column("unfiltered", "instead of", 10, progress.bytes_si),
)
# Batches per call: few, so that progress shows and workers that have read their part can wait for the others.
BATCHES = 16
BEHIND = 20
"""Mini-batches that were learned for each that a gradient lacks, at the start."""
MOST_BEHIND = 8
"""Mini-batches of each worker that a gradient may lack from then on, where one worker is slower."""
HASHED = 2**64
PARTS_PER_WORKER = 4
"""Parts per worker where parts can be reassigned, unless the job sets the number."""


class Progress(NamedTuple):
    """The progress of training, which a checkpoint holds besides the vectors and the parts."""

    number: int = 1
    """The present pass."""
    rounds: int = 0
    """Mini-batches per worker so far, counted also for workers that had none left."""
    seen: int = 0
    """Number of examples of this pass, and the sum of their losses at the weights when they were processed."""
    loss: float = 0.0
    positive: int = 0
    """Number of positive ones of them."""
    earlier: int = 0
    """Number of examples of earlier passes."""


SCHEMA = {
    **dict.fromkeys(("number", "rounds", "seen"), COUNT),
    "loss": NUMBER,
    "positive?": COUNT,
    "earlier?": COUNT,
    "parts": Each([COUNT, COUNT, bool]),
    "finished?": {
        "nonzeros": COUNT,
        "features?": COUNT,
        "factors?": COUNT,
        "passes": COUNT,
        "examples": COUNT,
        "ended_by": str,
    },
    "encoding?": ANY,
}
"""The form of the state in a checkpoint; a part is its worker's index, mini-batches done, and whether finished."""


def most_at_once(learned: int, batches: int, have: Sequence[bool]) -> list[int]:
    """Return how many mini-batches each worker learns in a call, at most `batches`, after `learned` ones of all.

    `have`: which workers have some left. One alone lacks no steps of others.

    >>> most_at_once(0, 16, [True, True]), most_at_once(60, 16, [True, True]), most_at_once(320, 16, [True, True])
    ([1, 0], [2, 1], [16, 16])
    >>> most_at_once(0, 16, [False, True, True]), most_at_once(0, 16, [True])
    ([0, 1, 0], [16])
    """
    most, count = max(learned // BEHIND, 1), sum(have)
    if count < 2 or most >= MOST_BEHIND * count:
        return [batches] * len(have)
    places = np.cumsum(have) - 1
    return [
        min(most // count + (place < most % count), batches) * some
        for place, some in zip(places.tolist(), have, strict=True)
    ]


def unfit(about: dict[str, Any]) -> str:
    """Return why a run cannot continue from a checkpoint's state; "" if it can."""
    problem = schema_error(about["state"], SCHEMA, "about.state")
    return problem or ("" if about["state"]["parts"] else "about.state.parts is empty")


class Online:
    """A training run: its progress `at`, and the worker and the progress of each part (`parts`).

    `counted`: all examples were read before training, as the settings of the update need their number.
    """

    columns: Sequence[progress.Column] = COLUMNS
    batches = BATCHES

    def __init__(self, cluster: Cluster, settings: Any, assignment: Assignment, data: Data) -> None:
        self.cluster, self.settings, self.data, self.assignment = cluster, settings, data, assignment
        self.at, self.parts = Progress(), self._cut()
        self.counted = getattr(settings, "algorithm", "") == "sgd"
        self._met = Tally()
        self.size = 0.0
        """|w|_1 after the last pass."""
        # The metrics of a run that has ended, and was stopped before it was evaluated: see `save`.
        self.finished: dict[str, Any] | None = None
        retry_on_loss(cluster, self.begin, assignment.load)

    def run(self) -> dict[str, Any]:
        """Run the passes; return the metrics."""
        cluster, settings = self.cluster, self.settings
        passes, stop = settings.passes or 1, False
        if self.finished is not None and self.at.number > passes:
            self.measure()
            return dict(self.finished)
        table = cluster.table(self.columns)
        while not stop:
            usage: dict[str, Any] = {}
            while not self.parts.finished and not cluster.stop:
                if (later := cluster.compact(self._restart_state)) is not None:
                    self._continue_from(later)
                if accounts := self.learn():
                    self.limit()
                    usage = cluster.recent_usage(accounts)
                    table.update(self._shown() | usage)
                if cluster.renewed():
                    regroup(cluster)
                    self._follow()
                if cluster.due_within_step():
                    break
            if self.parts.finished and self.at.number == 1:
                say(cluster, [asdict(self._met)])
            if self.parts.finished:
                check_positive(cluster, self.at.positive)
            if self.parts.finished and cluster.holds_back:
                self.flush()
            last, sizes = self.at, self.measure()
            if self.parts.finished:
                facts = self._shown() | sizes
                table.row(facts | usage)
                del facts["examples/s"]
                cluster.event(
                    "pass", **facts, objective=last.loss + settings.l1 * self.size, active=sizes["nonzeros"]
                )
                earlier = last.earlier + last.seen
                self.at = Progress(last.number + 1, last.rounds, earlier=earlier)
                self.parts = self._cut()
            stop = self.at.number > passes
            if not stop and cluster.due(self.at.number - 1):
                retry_on_loss(
                    cluster, lambda: cluster.checkpoint(self.at.rounds, self._state()), self._follow
                )
                stop = cluster.stopping()
        table.close()
        why = "request" if cluster.stopped_early else "passes"
        return {**sizes, "passes": last.number, "examples": last.seen, "ended_by": why}

    def save(self, metrics: dict[str, Any]) -> None:
        """Begin a checkpoint of a run that has ended, with its metrics."""
        self.finished = metrics
        self.cluster.checkpoint(self.at.rounds, self._state())

    def measure(self) -> dict[str, int]:
        """Determine |w|_1; return the number of weights that are not 0."""
        now = self.cluster.servers.call("norm", vector=self.cluster.vectors["w"])
        self.size = float(exact_total(now)[0])
        return {"nonzeros": sum(each["nonzeros"] for each in now)}

    def objective(self) -> dict[str, Any]:
        """Return the objective of the final model on the training data."""
        cluster = self.cluster
        parts = cluster.workers.call("training_loss", each=parts_of(cluster))
        return {"objective": sum(each["loss"] for each in parts) + self.settings.l1 * self.size}

    def specs(self, aggregate: bool) -> list[VectorSpec]:
        """Return the vectors of the model; `aggregate`: the servers sum the workers' gradients of a step."""
        settings, numbers = self.settings, {"l1": self.settings.l1, "l2": self.settings.l2}
        if settings.algorithm == "sgd":
            # Steps along the mean gradient, so the penalty is per example too.
            each = {name: number / self.data.examples for name, number in numbers.items()}
            numbers = {"rate": settings.alpha} | each
        else:
            numbers |= {"alpha": settings.alpha, "beta": settings.beta}
        self.cluster.facts |= numbers
        return [
            VectorSpec(
                "w", extent=self.data.extent, update=settings.algorithm, settings=numbers, aggregate=aggregate,
                key_bits=self.cluster.job.data.key_bits,
            )
        ]  # fmt: skip

    def begin(self) -> None:
        """Create the vectors, or restore a checkpoint."""
        cluster = self.cluster
        # Discard the counts of an attempt in which a worker was lost.
        cluster.vectors.clear()
        aggregate = synchronization(cluster.job.consistency).aggregate
        cluster.facts |= {"step by step": aggregate, "batch": self.settings.batch}
        specs = self.specs(aggregate)
        state = cluster.restore(lambda about: unfit(about) or other_keys(about))
        if state is None:
            for spec in specs:
                cluster.create_vector(spec)
            self.parts = self._cut()
            return
        for spec in specs:
            if spec.extent > (known := cluster.vectors[spec.name].spec.extent):
                raise CheckpointError(
                    f"[data] train has keys up to {spec.extent - 1}, and that of the checkpoint had none above"
                    f" {known - 1}: resume with its data, or start a new run"
                )
        # One without this number does not say that there is no positive example.
        state = {"positive": state["seen"], "earlier": 0} | state
        self.at = Progress(**{name: state[name] for name in Progress._fields})
        self.finished = state.get("finished")
        self.parts = self._cut(len(state["parts"]))
        workers = cluster.workers.addresses
        for part, (worker, done, finished) in zip(self.parts.parts, state["parts"], strict=True):
            part.worker, part.done, part.finished = workers[worker % len(workers)], done, finished

    def learn(self) -> list[dict[str, Any]]:
        """Let every worker learn from some more mini-batches; return their accounts, none if a worker was lost."""
        cluster, first = self.cluster, self.at.rounds
        todo = [self._todo(worker) for worker in cluster.workers.addresses]
        counts = [self.batches] * len(todo)
        if not synchronization(cluster.job.consistency).aggregate:
            learned = (self.at.earlier + self.at.seen) // self.settings.batch
            counts = most_at_once(learned, self.batches, [bool(parts) for parts in todo])
        each = [{"parts": parts, "count": count} for parts, count in zip(todo, counts, strict=True)]
        self.at = self.at._replace(rounds=first + max(counts))
        asked = {"first_round": first, "number": self.at.number}
        try:
            done = cluster.workers.call("learn", asked, each=each)
        except WorkerLost:
            regroup(cluster)
            retry_on_loss(cluster, lambda: self._ask(first))
            self._follow()
            return []
        for one in done:
            self._note(one)
        if cluster.job.layout.hand_over:
            self.parts.hand_over()
        return [one["account"] for one in done]

    def limit(self) -> None:
        """Limit the number of rows, if the program does, between calls of the workers."""

    def flush(self) -> None:
        """Let the workers push the parts of their gradients that filters have held back."""
        cluster, round_ = self.cluster, self.at.rounds
        self.at = self.at._replace(rounds=round_ + 1)
        retry_on_loss(cluster, lambda: cluster.workers.call("flush", {"round": round_}), self._follow)

    def _todo(self, worker: int) -> list[list[int]]:
        """List a worker's next parts: each its number, the number of all parts, and the mini-batches done."""
        return [[part.number, len(self.parts.parts), part.done] for part in self.parts.of(worker)]

    def _ask(self, first: int) -> None:
        """Query the surviving workers for their progress in a call during which another one was lost."""
        workers = self.cluster.workers
        there = [at for at, worker in enumerate(workers.addresses) if worker in self.parts.workers]
        for one in workers.call("report_progress", {"first_round": first}, only=there) if there else ():
            self._note(one)

    def _note(self, done: dict[str, Any]) -> None:
        for number, batches, finished in done["parts"]:
            self.parts.note(number, batches, finished)
        # See `find_last_key`.
        unread = self.data.extent == HASHED and not self.counted
        if self.at.number == 1 and unread:
            self._met.add(Tally(skipped=done["skipped"], first_error=done["first_error"]))
        at = self.at
        self.at = at._replace(
            seen=at.seen + done["examples"],
            loss=at.loss + done["loss"],
            positive=at.positive + done["positive"],
        )

    def _follow(self) -> None:
        """Reassign the parts of lost workers; new workers have found the files of the others."""
        retry_on_loss(self.cluster, self.assignment.check_files)
        self.parts.follow(self.cluster.workers.addresses)

    def _cut(self, parts: int = 0) -> Workload:
        """Partition the data for a pass of the present workers."""
        job, workers = self.cluster.job, self.cluster.workers.addresses
        each = PARTS_PER_WORKER if job.layout.hand_over else 1
        return Workload(parts or job.data.parts or each * len(workers), workers)

    def _state(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        workers = self.cluster.workers.addresses
        parts = [[workers.index(part.worker), part.done, part.finished] for part in self.parts.parts]
        finished = {} if self.finished is None else {"finished": self.finished}
        return self.assignment.told(self.at._asdict() | {"parts": parts} | finished)

    def _restart_state(self) -> dict[str, Any]:
        """Return the state from which a successor of the scheduler continues."""
        met = asdict(self._met)
        return {"at": self.at, "parts": self.parts.state(), "size": self.size, "met": met}

    def _continue_from(self, state: dict[str, Any]) -> None:
        self.at, self.parts = Progress(*state["at"]), Workload.restored(state["parts"])
        self.size, self._met = state["size"], Tally(**state["met"])

    def _shown(self) -> dict[str, Any]:
        at, trained = self.at, self.cluster.trained
        return {
            "pass": at.number,
            "seconds": trained,
            "examples": at.seen,
            "mean loss": at.loss / max(at.seen, 1),
            "examples/s": at.seen * at.number / max(trained, 1e-9),
        }


@dataclass
class Step:
    """A mini-batch in progress: its time and part; `after` are the pushes that the pulls wait for."""

    time: int
    part: int
    batch: Minibatch
    after: list[Task]
    pulls: list[Task] = field(default_factory=list)
    more: Any = None
    """What the program notes."""


class Push(NamedTuple):
    """Rows for some keys of a vector."""

    vector: str
    keys: key_arrays.KeyArray | KeyList
    rows: NDArray[Any]


class CallProgress:
    """A worker's progress in the call that began at a round: the number of applied mini-batches of each part."""

    def __init__(self, first_round: int) -> None:
        self.first_round = first_round
        self.applied: dict[int, int] = {}
        # The parts that have ended, and the number of their mini-batches in this call.
        self.ended: dict[int, int] = {}
        self.examples, self.positive, self.loss = 0, 0, 0.0
        self.skipped, self.first_error = 0, ""

    def count(self, part: int, labels: NDArray[Any], loss: float, pushes: list[Task], push: Task) -> None:
        """Count a mini-batch once its last push is done."""
        if all(each.done and each.error is None for each in pushes):
            self.applied[part] = self.applied.get(part, 0) + 1
            self.examples, self.loss = self.examples + len(labels), self.loss + loss
            self.positive += int(np.count_nonzero(labels > 0.0))

    def report(self) -> dict[str, Any]:
        """Return the report for the scheduler: for each part the number, and whether it is finished."""
        parts = sorted(self.applied.keys() | self.ended.keys())
        done = [(part, self.applied.get(part, 0)) for part in parts]
        finished = [[part, count, self.ended.get(part) == count] for part, count in done]
        return {
            "parts": finished,
            "examples": self.examples,
            "positive": self.positive,
            "loss": self.loss,
            "skipped": self.skipped,
            "first_error": self.first_error,
        }


class Learner:
    """Learns online, for a worker; `counted`: as of `Online`."""

    counted = False
    stages = 1
    """Pulls of a mini-batch that follow one another."""

    def __init__(self, context: Context, data: Source, consistency: PushPull) -> None:
        self.context, self.data, self.consistency = context, data, consistency
        self.settings = context.job.settings
        self.vectors, self.number = context.vectors, 1
        # Where rows are dropped, servers forget the lists.
        lists = not getattr(self.settings, "max_rows", 0)
        self.minibatches = Minibatches(context, data, self.settings.batch, lists)
        self._stream: Stream | None = None
        self._progress = CallProgress(-1)
        self._pushes: dict[int, list[Task]] = {}

    def find_last_key(self, batches: Iterator[Examples], tally: Tally) -> int:
        """Return the last possible key: hashed keys have no bound; for others, read all examples."""
        hashed = all(format_of(path, self.data.spec) in HASHED_FORMATS for path in self.data.spec.train)
        if hashed and not self.counted:
            next(batches, None)
            # They are counted when they are learned.
            tally.skipped, tally.first_error = 0, ""
            return HASHED - 1
        if hashed:
            deque(batches, maxlen=0)
            return HASHED - 1
        return max((int(batch.keys.max()) for batch in batches if len(batch.keys)), default=0)

    def learn(self, parts: list[list[int]], count: int, first_round: int, number: int) -> dict[str, Any]:
        """Learn from at most `count` mini-batches of `parts`; return the report once all pushes were applied.

        `number` is that of the pass.
        """
        self.number = number
        keep = synchronization(self.context.job.consistency, self.stages)
        self._progress, self._pushes = CallProgress(first_round), {}
        mine, ahead = self._batches(parts), deque[Step]()
        for time in range(first_round, first_round + count):
            self.context.step(time)
            with self.context.working():
                part, batch = next(mine, None) or (-1, Minibatch(NOTHING))
            if part < 0 and not keep.aggregate:
                break
            after = self._earlier(self.consistency.pull(time))
            if keep.waits:
                self.context.wait_all(after)
                after = []
            ahead.append(Step(time, part, batch, after))
            self.pull(ahead[-1])
            if len(ahead) > 1:
                self.pull_more(ahead[-2])
            if len(ahead) > keep.ahead:
                self._push(ahead.popleft(), keep.aggregate)
        while ahead:
            self._push(ahead.popleft(), keep.aggregate)
        self.context.wait_all([task for tasks in self._pushes.values() for task in tasks])
        return self._progress.report() | {"account": self.context.account()}

    def pull(self, step: Step) -> None:
        """Request the rows of a mini-batch's keys."""
        w = self.vectors["w"]
        step.pulls.append(w.pull(step.batch.keys_for(w), after=step.after))

    def pull_more(self, step: Step) -> None:
        """Request what depends on the first rows of a mini-batch, if there is such."""

    def gradients(self, step: Step) -> tuple[float, list[Push]]:
        """Return the losses of a mini-batch at the pulled rows, and the gradients to push."""
        weights, batch = step.pulls[0].result(), step.batch
        with self.context.working():
            gradient = np.empty(len(batch.keys))
            loss = kernels.batch_gradient(
                batch.indptr, batch.positions, batch.values, batch.labels, weights, gradient
            )
            if self.settings.algorithm == "sgd" and len(batch):
                gradient /= len(batch)
        return float(loss), [Push("w", batch.keys_for(self.vectors["w"]), gradient)]

    def flush(self, round: int) -> None:
        """Push the parts that filters have held back."""
        together = synchronization(self.context.job.consistency).aggregate
        for vector in self.vectors.values():
            vector.flush(round=round if together else NO_ROUND).result()

    def report_progress(self, first_round: int) -> dict[str, Any]:
        """Return the report of the call of that round, also if it has failed."""
        return (
            self._progress if self._progress.first_round == first_round else CallProgress(first_round)
        ).report()

    def _batches(self, parts: list[list[int]]) -> Iterator[tuple[int, Minibatch]]:
        """Yield mini-batches from one part after the other, each with its part."""
        progress, again = self._progress, self.number < (self.settings.passes or 1)
        for part, of, done in parts:
            if self._stream is None or not self._stream.is_at(part, of, done):
                self._stream = self.minibatches.stream(part, of, done, again)
            while (batch := self._taken(self._stream)) is not None:
                yield part, batch
            progress.ended[part] = self._stream.done - done

    def _taken(self, stream: Stream) -> Minibatch | None:
        """Return the next mini-batch; None if there is none left. Skipped examples are counted."""
        progress, tally, before = self._progress, stream.tally, stream.tally.skipped
        batch = stream.take()
        progress.skipped += tally.skipped - before
        progress.first_error = progress.first_error or tally.first_error
        return batch

    def _push(self, step: Step, aggregate: bool) -> None:
        """Push the gradients of a mini-batch at the pulled rows."""
        if aggregate:
            # Raises the error of a push that failed because a worker was lost: the pull may then never be answered.
            self.context.wait_all(step.after)
        loss, pushes = self.gradients(step)
        round_ = step.time if aggregate else NO_ROUND
        self._pushes = {
            time: tasks for time, tasks in self._pushes.items() if not all(task.done for task in tasks)
        }
        after = self._earlier(self.consistency.push(step.time))
        tasks = [
            self.vectors[name].push(keys, rows, round=round_, after=after) for name, keys, rows in pushes
        ]
        self._pushes[step.time] = tasks
        if step.part >= 0:
            count = partial(self._progress.count, step.part, step.batch.labels, loss, tasks)
            for task in tasks:
                task.then(count)

    def _earlier(self, times: Collection[int]) -> list[Task]:
        """Return the unfinished pushes of the mini-batches of these times."""
        return [task for time in unmet(times, self._pushes) for task in self._pushes[time] if not task.done]


class Synchronization(NamedTuple):
    """How workers synchronize: `aggregate` each step over all workers, and pull `ahead` by a number of steps.

    `waits`: the pushes that a pull depends on are waited for before it is sent, because they were sent long before.
    Then it is a request without dependencies, which kernels serve.
    """

    aggregate: bool
    ahead: int
    waits: bool = False


def synchronization(spec: ConsistencySpec, stages: int = 1) -> Synchronization:
    """Return the synchronization of a consistency model, for mini-batches whose rows are pulled in some stages."""
    if spec.is_sequential:
        return Synchronization(True, 0)
    if spec.model == "eventual":
        return Synchronization(False, stages)
    tau = spec.tau if spec.pull_tau is None else spec.pull_tau
    return Synchronization(False, min(tau, stages), tau > stages)


NOTHING = Examples(
    np.empty(0, np.float32), np.zeros(1, np.int64), np.empty(0, np.uint64), fields=np.empty(0, np.int32)
)

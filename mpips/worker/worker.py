"""The worker: executes what the scheduler calls, and is the client of every vector (paper, Algorithm 1).

while not stopped:
    execute the next call of the scheduler: its pushes and pulls are tasks, which it waits for as it needs
    otherwise move messages, or rest

A call has settled when it is answered: all that it has asked for is finished, and what of it has failed, and nobody was
told, fails the call. Calls are executed one after the other, except those of methods marked `at_once`: these run as
soon as they arrive, also while another call waits for messages, which is how a delay is raised or lowered in flight.
They are answered when what they have asked for is finished, which nobody waits for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips.calls import Own, check_worker
from mpips.checkpoint.background_writer import AtOnce, Writes
from mpips.checkpoint.checkpoint import load_worker, load_worker_if_any, write_worker
from mpips.checkpoint.manifest import Entry
from mpips.cluster.node import IDLE, Node
from mpips.errors import ProtocolError
from mpips.filters.saved import PREFIX, take_back, to_arrays
from mpips.server.server import answer_written, nothing_written
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.transport.message import Command, Message
from mpips.worker.vector import Vector, Vectors

Method = TypeVar("Method", bound=Callable[..., Any])
T = TypeVar("T")


def at_once(method: Method) -> Method:
    """Mark a worker's method that need not wait for the call at hand to end; it must not wait for anything itself."""
    method.at_once = True  # type: ignore[attr-defined]
    return method


class Answer(NamedTuple):
    """What a worker's method may return when it gives arrays: metadata, rows, keys."""

    meta: dict[str, Any] | None = None
    values: NDArray[Any] | None = None
    keys: NDArray[np.uint64] | None = None


def _raise(task: Task) -> None:
    """Raise the error of a task that nobody waits for, where messages are moved."""
    if task.error is not None:
        raise task.error


class Context:
    """What a program's worker is given: its place among the workers, the job and its vectors, and how to wait.

    `index` and `count` are of its worker group, such as `train`; a job without groups has one, of all workers. By them
    data are shared out among those whom `cluster.group` gives. `index_of_all` and `count_of_all` are of all workers
    together, whom `cluster.workers` gives: what is different for each of them, such as a seed, goes by these.
    `communicator` is the MPI communicator of the group (None on the twin), for collectives of a program's own: while it
    loads, say, and never while tasks are under way.
    """

    def __init__(self, node: Node, job: Any, communicator: Any = None) -> None:
        self.node, self.job, self.communicator = node, job, communicator
        self.vectors = Vectors()

    @property
    def group(self) -> str:
        """The name of this worker's group."""
        found = (name for name, ranks in self._members().items() if self.node.rank in ranks)
        return next(found, self.node.place.group)

    @property
    def index(self) -> int:
        """This worker's place among those of its group that there are now."""
        return self._members()[self.group].index(self.node.rank)

    @property
    def count(self) -> int:
        """How many workers of its group there are now."""
        return len(self._members()[self.group])

    @property
    def index_of_all(self) -> int:
        """This worker's place among the workers of all groups that there are now."""
        return self.node.view.workers.index(self.node.rank)

    @property
    def count_of_all(self) -> int:
        """How many workers of all groups there are now."""
        return len(self.node.view.workers)

    def _members(self) -> dict[str, tuple[int, ...]]:
        return self.node.layout.members(self.node.view.workers)

    @property
    def rank(self) -> int:
        """This worker's rank among all of the run."""
        return self.node.rank

    def wait(self, task: Task) -> Any:
        """Wait until a task is finished; give its result: a pull's rows.

        Raises:
            RemoteError: it failed on another rank.
            WorkerLost: another worker died that had a part in it.
        """
        return self.node.wait(task)

    def wait_all(self, tasks: Iterable[Task]) -> list[Any]:
        """Wait for each of some tasks; give their results, in order. Raises as `wait`."""
        return self.node.wait_all(tasks)

    def working(self) -> AbstractContextManager[None]:
        """Count the seconds inside `with context.working():` as work in the run's accounts and trace."""
        return self.node.working()

    def step(self, number: int) -> None:
        """Say that a step of the algorithm begins: injected faults (`[faults]`) go by its number."""
        self.node.step(number)

    def polling(self, items: Iterable[T]) -> Iterator[T]:
        """Pass items through, and move messages between them: so a long loop without requests hears a stop."""
        return self.node.breathe(items)

    def wall(self) -> float:
        """The time now, in seconds since the epoch."""
        return self.node.van.wall()

    def account(self) -> dict[str, Any]:
        """What this rank has sent (bytes) and how it has spent its time (seconds) so far, by name."""
        return self.node.account()

    def left_out(self, name: str, role: Literal["worker", "server"], raw: int, wire: int) -> None:
        """Count what a filter of the program's own leaves out of messages of workers or servers.

        Args:
            name: the filter, as reports name it.
            role: whose messages; a worker may speak for the servers, as far as they answer it.
            raw: bytes without the filter.
            wire: bytes with it.
        """
        self.node.saved(name, role, raw, wire)

    @property
    def base(self) -> Path:
        """The job file's folder, to which its paths are relative."""
        return Path(self.job.base)


class Workshop:
    """Executes calls on a program's worker, one at a time."""

    def __init__(
        self,
        node: Node,
        make_worker: Any,
        job: Any,
        communicator: Any = None,
        writer: Writes | None = None,
    ) -> None:
        self.node, self._writer = node, writer or AtOnce()
        self._file: Future[Entry] | None = None  # of the last snapshot
        self._awaiting: list[Message] = []  # requests that ask when that is written
        self.context = Context(node, job, communicator)
        self.worker = make_worker(self.context)
        check_worker(self.worker)
        self.calls: deque[Message] = deque()
        self._settled = node.tasks.time  # what is issued from then on is the next call's
        self._unanswered: list[tuple[Message, Answer, list[Task]]] = []  # calls that ran at once
        self._own: dict[str, Callable[..., Any]] = {
            Own.CREATE_VECTOR: self._create_vector,
            Own.ACCOUNT: node.account,
            Own.SNAPSHOT: self._snapshot,
            Own.RESTORE: self._restore,
            Own.REBUILD: self._rebuild,
            Own.RESTORE_FILTERS: self._restore_filters,
        }

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """The worker's loop; ends by `Stopped`, or between two calls when `until()`."""
        self.node.handlers[Command.CALL] = self._receive
        self.node.on_tick.append(self._tick)
        self.node.controls[Command.ASIDE] = self._aside
        while not until():
            self.node.wait_until(lambda: bool(self.calls) or until(), IDLE)
            if self.calls:
                request = self.calls.popleft()
                self.node.crew = int(request.meta.get("crew", 0))
                self._execute(request)

    def _receive(self, request: Message) -> None:
        if request.meta["call"] == Own.WRITTEN:
            self._awaiting.append(request)
            return
        for called in self.node.observers.called:
            called(request)
        if getattr(getattr(self.worker, request.meta["call"], None), "at_once", False):
            self._execute(request, at_once=True)
        else:
            self.calls.append(request)

    def _aside(self, message: Message) -> None:
        for aside in self.node.observers.aside:
            aside(message.meta)
        since = self.node.tasks.time
        self._method(message.meta["call"])(**message.meta["args"])
        for task in self._seen_to(since):
            task.then(_raise)

    def _execute(self, request: Message, at_once: bool = False) -> None:
        tasks = self.node.tasks
        since = tasks.time if at_once else self._settled
        with self.node.observers.calling(request):
            try:
                answer = self._method(request.meta["call"])(**self._arguments(request))
                if not isinstance(answer, Answer):
                    answer = Answer(answer)
                if at_once and (
                    own := self._seen_to(since)
                ):  # nobody may wait here: the call at hand goes on
                    self._unanswered.append((request, answer, own))
                    return
                if not at_once:
                    self.node.settle(since)  # what the scheduler is told of is so, and stays
                self._answer(request, answer)
            except Exception as error:
                self.node.fail(request, error)
            finally:
                if not at_once:
                    self._settled = tasks.time
                    tasks.failed.clear()

    def _seen_to(self, since: int) -> list[Task]:
        """Give the tasks issued at `since` or later, which the call at hand is not to wait for."""
        tasks = self.node.tasks.unheeded(since)
        for task in tasks:
            task.heeded = True
        return tasks

    def _answer(self, request: Message, answer: Answer) -> None:
        self.node.reply(request, answer.values, answer.meta, answer.keys)

    def _arguments(self, request: Message) -> dict[str, Any]:
        arguments = dict(request.meta["args"])
        if request.keys is not None:
            arguments["keys"] = request.keys
        if request.values is not None:
            arguments["values"] = request.values
        return arguments

    def _method(self, name: str) -> Any:
        if name in self._own:
            return self._own[name]
        method = None if name.startswith("_") else getattr(self.worker, name, None)
        if method is None:
            raise ProtocolError(f"the program's Worker has no method {name!r}")
        return method

    def _create_vector(self, spec: dict[str, Any], number: int, expect: int) -> None:
        made = VectorSpec(**spec)
        self.context.vectors[made.name] = Vector(self.node, made, number)

    # A program's worker that has state of its own names its arrays in `state()`, takes them back in
    # `restore(**arrays)`, and can do without in `rebuild()`, when the number of workers has changed.

    def _snapshot(self, folder: str) -> None:
        """Copy the worker's state and that of its filters, and begin to write it."""
        if self.node.policy.again:  # which writes no checkpoints
            self._file = nothing_written()
            return
        state = getattr(self.worker, "state", None)
        own = {} if state is None else state()
        arrays = {name: np.array(array) for name, array in own.items()} | to_arrays(self.node.pushes)
        if state is None and not arrays:
            self._file = nothing_written()
            return
        write = self.node.observers.wrapped(self.node.observers.writing, write_worker)
        self._file = self._writer.start(write, Path(folder), self.context.index_of_all, arrays)

    def _tick(self) -> None:
        if self._awaiting and self._file is not None and self._file.done():
            answer_written(self.node, self._awaiting, self._file)
        for each in [each for each in self._unanswered if all(task.done for task in each[2])]:
            self._answer_late(*each)

    def _answer_late(self, request: Message, answer: Answer, tasks: list[Task]) -> None:
        """Answer a call that ran at once, as soon as what it has pushed stays, or has failed."""
        failed = next((task for task in tasks if task.error is not None), None)
        if failed is None and self.node.tasks.ahead:
            self.node.hasten()
            return
        self._unanswered = [each for each in self._unanswered if each[0] is not request]
        try:
            if failed is not None:
                self.node.wait(failed)
            self._answer(request, answer)
        except Exception as error:
            self.node.fail(request, error)

    def _restore(self, folder: str) -> None:
        restore = getattr(self.worker, "restore", None)
        if restore is not None:
            arrays, _ = load_worker(Path(folder), self.context.index_of_all)
            restore(**{name: array for name, array in arrays.items() if not name.startswith(PREFIX)})

    def _restore_filters(self, folder: str, workers: int) -> None:
        """Take back what the filters of as many workers as there were have held: each worker that of some of them."""
        mine = [
            {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
            for number in range(self.context.index_of_all, workers, self.context.count_of_all)
            for arrays in [load_worker_if_any(Path(folder), number)]
        ]
        ring = self.node.view.ring
        take_back(self.node.pushes, mine, lambda name: ring.cuts(self.context.vectors[name].spec.extent))

    def _rebuild(self) -> None:
        rebuild = getattr(self.worker, "rebuild", None)
        if rebuild is not None:
            rebuild()

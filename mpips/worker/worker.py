"""The worker: executes the scheduler's calls, and is the client of every vector (paper, Algorithm 1).

while not stopped:
    execute the next call of the scheduler: its pushes and pulls are tasks, which it waits for as needed
    otherwise make progress on messages, or idle

A call is complete when it is answered: all its tasks are finished, and an error of a task that no caller has seen fails
the call. Calls are executed one after the other, except those of methods marked `at_once`: these run as soon as they
arrive, also while another call waits for messages, for example to change the delay during a pass. They are answered
when their tasks are finished, without blocking the worker.

For push and pull see `mpips.worker.vector`.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from mpips.calls import BuiltInCall, check_runs, check_worker, defined_at
from mpips.checkpoint.loading import load_worker, load_worker_if_any
from mpips.checkpoint.writing import write_worker
from mpips.cluster.node import IDLE, Node
from mpips.cluster.registration import Registration
from mpips.config.job_file import Job
from mpips.errors import CutShort, ProtocolError, UsageError
from mpips.files.json_values import check_names
from mpips.filters.state_arrays import PREFIX, restore_states, to_arrays
from mpips.forked import program_code
from mpips.keys import KeyArray
from mpips.server.snapshot_file import SnapshotFile
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.transport.message import Command, Message
from mpips.transport.sendable import check_arrays
from mpips.worker.vector import Vector, Vectors

Method = TypeVar("Method", bound=Callable[..., Any])
T = TypeVar("T")


def at_once(method: Method) -> Method:
    """Mark a worker's method to run before the present call ends; it must not wait for tasks itself.

    >>> class Worker:
    ...     tau = 0
    ...
    ...     @at_once
    ...     def set_tau(self, tau):
    ...         self.tau = tau
    >>> Worker.set_tau.at_once
    True
    """
    method.at_once = True  # type: ignore[attr-defined]
    return method


class Answer(NamedTuple):
    """Return value of a worker's method with arrays: metadata, rows, keys.

    >>> from mpips import simulate
    >>> class Worker:
    ...     def __init__(self, context):
    ...         pass
    ...
    ...     def gradient(self):
    ...         return Answer({"loss": 0.5}, values=np.ones(2), keys=np.array([3, 8], np.uint64))
    >>> def schedule(cluster):
    ...     ((keys, rows),) = cluster.workers.gather("gradient")
    ...     return keys.tolist(), rows.tolist(), cluster.workers.call("gradient")
    >>> simulate(schedule, Worker)
    ([3, 8], [[1.0], [1.0]], [{'loss': 0.5}])
    """

    meta: dict[str, Any] | None = None
    values: NDArray[Any] | None = None
    keys: KeyArray | None = None


class Later(NamedTuple):
    """Return value of an `at_once` method whose answer is not known yet: until it is, `get()` returns None.

    `get` is called while the worker processes messages; an error that it raises fails the call.

    >>> from mpips import simulate
    >>> class Worker:
    ...     done = 0
    ...
    ...     def __init__(self, context):
    ...         pass
    ...
    ...     def work(self):
    ...         self.done = 7
    ...
    ...     @at_once
    ...     def result(self):
    ...         return Later(lambda: Answer({"done": self.done}) if self.done else None)
    >>> def schedule(cluster):
    ...     early = cluster.workers.start("result")
    ...     cluster.workers.call("work")
    ...     return early.result()[0].meta
    >>> simulate(schedule, Worker)
    {'done': 7}
    """

    get: Callable[[], Answer | None]


def _raise(task: Task) -> None:
    """Raise, in the event loop, the error of a task that no caller waits for."""
    if task.error is not None:
        raise task.error


class Context:
    """The argument of a program's `Worker`: its index among the workers, the job and its vectors, and waiting.

    `index` and `count` are within its worker group, such as `train`; a job without groups has one group of all workers.
    They partition data among the members of `cluster.group`. `index_of_all` and `count_of_all` are within all workers
    together, the members of `cluster.workers`: use these for what differs per worker, such as a seed. `communicator` is
    the MPI communicator of the group (None in simulations), for the program's own collectives: while it loads, for
    example, and never while tasks are outstanding.

    >>> from mpips import VectorSpec, simulate
    >>> class Worker:
    ...     def __init__(self, context: Context):
    ...         self.context = context
    ...
    ...     def train(self):
    ...         context, w = self.context, self.context.vectors["w"]
    ...         with context.working():
    ...             rows = np.full(1, context.index + 1.0)
    ...         w.push(np.array([context.index], np.uint64), rows).result()
    >>> def schedule(cluster):
    ...     w = cluster.create_vector(VectorSpec("w"))
    ...     cluster.workers.call("train")
    ...     return w.pull(np.arange(3, dtype=np.uint64)).result().tolist()
    >>> simulate(schedule, Worker, workers=2)
    [1.0, 2.0, 0.0]
    """

    def __init__(self, node: Node, job: Job, communicator: Any = None, shared: Path | None = None) -> None:
        self.node, self.job, self.communicator = node, job, communicator
        self.shared = shared
        """A folder for files that this worker's successor may need; None: it has none. The run's end removes it."""
        self.vectors = Vectors()
        self.cut_short = False
        """Whether the run does without the result of the present call."""

    @property
    def group(self) -> str:
        """The name of this worker's group."""
        found = (name for name, ranks in self._members().items() if self.node.rank in ranks)
        return next(found, self.node.place.group)

    @property
    def index(self) -> int:
        """This worker's index in its group's present workers."""
        return self._members()[self.group].index(self.node.rank)

    @property
    def count(self) -> int:
        """The number of present workers of its group."""
        return len(self._members()[self.group])

    @property
    def group_index(self) -> int:
        """The same as `index`."""
        return self.index

    @property
    def group_count(self) -> int:
        """The same as `count`."""
        return self.count

    @property
    def index_of_all(self) -> int:
        """This worker's index in the present workers of all groups."""
        return self.node.view.workers.index(self.node.rank)

    @property
    def count_of_all(self) -> int:
        """The number of present workers of all groups."""
        return len(self.node.view.workers)

    def _members(self) -> dict[str, tuple[int, ...]]:
        return self.node.layout.members(self.node.view.workers)

    @property
    def rank(self) -> int:
        """This worker's rank among all of the run."""
        return self.node.rank

    def wait(self, task: Task) -> Any:
        """Wait until a task is finished; return its values. The same as `task.result()`."""
        return task.result()

    def wait_all(self, tasks: Iterable[Task]) -> list[Any]:
        """Wait for all tasks; return their results, in order. Raises as `Task.result`."""
        return self.node.wait_all(tasks)

    def working(self) -> AbstractContextManager[None]:
        """Count the seconds inside `with context.working():` as work in the run's accounts and trace."""
        return self.node.time_use.working()

    def step(self, number: int) -> None:
        """Mark the start of a step of the algorithm: injected faults (`[faults]`) are triggered by its number."""
        self.node.step(number)

    def polling(self, items: Iterable[T]) -> Iterator[T]:
        """Yield the items, and process messages between them, so that a long loop without requests can be stopped.

        Raises:
            CutShort: the run is to stop, and does without this call; see `mpips.finish`.
        """
        for item in self.node.poll_between(items):
            if self.cut_short:
                raise CutShort("cut short: the run is asked to stop")
            yield item

    def take_arrived(self) -> None:
        """Process the messages that have arrived, without waiting: `then` of tasks that are finished is called."""
        self.node.take_arrived()

    def wall(self) -> float:
        """The time now, in seconds since the epoch."""
        return self.node.van.wall()

    def account(self) -> dict[str, Any]:
        """Bytes sent by this rank and its time breakdown (seconds) so far, by name."""
        return self.node.account()

    def left_out(self, name: str, role: Literal["worker", "server"], raw: int, wire: int) -> None:
        """Count the bytes that a filter of the program itself saves in messages of workers or servers.

        Args:
            name: the filter's name in reports.
            role: the senders; a worker may count for the servers that answer it.
            raw: bytes without the filter.
            wire: bytes with it.
        """
        self.node.savings.add(name, role, raw, wire)

    @property
    def base(self) -> Path:
        """The job file's folder; relative paths start from it."""
        return Path(self.job.base)


class CallExecutor:
    """The role of a worker: executes the scheduler's calls on a program's worker, one at a time."""

    def __init__(
        self,
        node: Node,
        make_worker: Any,
        job: Job,
        communicator: Any = None,
        file: SnapshotFile | None = None,
        shared: Path | None = None,
    ) -> None:
        self.node, self._file = node, file or SnapshotFile(node)
        self.context = Context(node, job, communicator, shared)
        with program_code("Worker"):
            self.worker = make_worker(self.context)
        check_worker(self.worker)
        self._has_left = False
        self.calls: deque[Message] = deque()
        # The time of the present call, unless it runs at once.
        self._present = -1
        # Tasks issued from this time on are the next call's.
        self._settled = node.tasks.time
        # Calls that ran at once, and are not answered yet.
        self._unanswered: list[tuple[Message, Answer | Later, list[Task]]] = []
        self._role = Registration(
            handlers={Command.CALL: self._receive}, controls={Command.NOTIFY: self._notified}
        )
        # Registered while there are such calls, also when the rank is not a worker any more.
        self._late = Registration(ticks=(self._answer_all_late,), glances=(self._answer_all_late,))
        self._own: dict[str, Callable[..., Any]] = {
            BuiltInCall.CREATE_VECTOR: self._create_vector,
            BuiltInCall.ACCOUNT: node.account,
            BuiltInCall.SNAPSHOT: self._snapshot,
            BuiltInCall.RESTORE: self._restore,
            BuiltInCall.REBUILD: self._rebuild,
            BuiltInCall.RESTORE_FILTERS: self._restore_filters,
            BuiltInCall.CUT_SHORT: self._cut_short,
        }

    def enter(self) -> None:
        """Take the role: receive calls."""
        self.node.register(self._role)

    def leave(self) -> None:
        """Leave the role; calls that ran at once are still answered."""
        self.node.unregister(self._role)
        self._has_left = True
        self._release()

    def _release(self) -> None:
        """Release the program's worker, and with it its data, once it is not needed any more.

        This object refers to itself by its callbacks. Without them, it ends with the role, and with it the context and
        the requests that its vectors keep: Python looks for such cycles after hours.
        """
        if self._has_left and not self._unanswered:
            self.worker = None
            self._role = self._late = Registration()
            self._own = {}

    def run(self, until: Callable[[], bool] = lambda: False) -> None:
        """Execute calls until `until()` is true between two calls; `Stopped` ends it earlier."""
        while not until():
            self.node.wait_until(lambda: bool(self.calls) or until(), IDLE)
            if self.calls:
                request = self.calls.popleft()
                self.node.workers_since = int(request.meta.get("workers_since", 0))
                self._execute(request)
                # What the call has done may be their answer.
                self._answer_all_late()

    def _receive(self, request: Message) -> None:
        if request.meta["call"] == BuiltInCall.WRITTEN:
            self._file.await_written(request)
            return
        for called in self.node.observers.called:
            called(request)
        if getattr(getattr(self.worker, request.meta["call"], None), "at_once", False):
            self._execute(request, at_once=True)
        else:
            self.calls.append(request)

    def _notified(self, message: Message) -> None:
        for observe in self.node.observers.notified:
            observe(message.meta)
        since = self.node.tasks.time
        self._method(message.meta["call"])(**message.meta["args"])
        for task in self._without_waiting(since):
            task.then(_raise)

    def _execute(self, request: Message, at_once: bool = False) -> None:
        tasks = self.node.tasks
        since = tasks.time if at_once else self._settled
        if not at_once:
            self._present, self.context.cut_short = request.time, False
        with self.node.observers.calling(request):
            try:
                with program_code(f"Worker.{request.meta['call']}"):
                    answer = self._method(request.meta["call"])(**self._arguments(request))
                # The present call continues, so this one must not wait.
                own = self._without_waiting(since) if at_once else []
                if own or (at_once and isinstance(answer, Later)):
                    if not self._unanswered:
                        self.node.register(self._late)
                    self._unanswered.append((request, self._checked(request, answer), own))
                    return
                answer = self._checked(request, answer)
                if not at_once:
                    # The answer means that all tasks of the call are finished and durable.
                    self.node.settle(since)
                self._answer(request, answer)
            except Exception as error:
                self.node.callee.fail(request, error)
            finally:
                if not at_once:
                    self._present, self._settled = -1, tasks.time
                    tasks.failed.clear()

    def _checked(self, request: Message, answer: Any) -> Any:
        """Return what a method has returned as an answer; UsageError, naming it, if it cannot be sent."""
        if isinstance(answer, Later):
            return answer
        name, made = request.meta["call"], answer if isinstance(answer, Answer) else Answer(answer)
        where = f"the result of Worker.{name}{defined_at(getattr(self.worker, name, None))}"
        check_names(made.meta, where)
        check_arrays(where, made.keys, made.values)
        return made

    def _without_waiting(self, since: int) -> list[Task]:
        """Return the tasks issued at `since` or later, and exclude them from those that the present call waits for."""
        tasks = self.node.tasks.unhandled(since)
        for task in tasks:
            task.handled = True
        return tasks

    def _answer(self, request: Message, answer: Answer) -> None:
        self.node.callee.reply(request, answer.values, answer.meta, answer.keys)

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
        check_runs(method, f"Worker.{name}")
        return method

    def _cut_short(self, since: int) -> None:
        """Let the present call end early, if it was issued at time `since` or later."""
        self.context.cut_short |= self._present >= since

    def _create_vector(self, spec: dict[str, Any], number: int, expect: int) -> None:
        made = VectorSpec(**spec)
        self.context.vectors[made.name] = Vector(self.node, made, number)

    # The state of a program's worker: `state()` returns its arrays by name, `restore(**arrays)` restores them, and
    # `rebuild()` makes them anew when the number of workers has changed.

    def _snapshot(self, folder: str) -> None:
        """Copy the worker's state and that of its filters, and start to write it."""
        # A replay writes no checkpoints.
        if self.node.policy.is_replay:
            self._file.skip()
            return
        state = getattr(self.worker, "state", None)
        own = {} if state is None else state()
        for name in own:
            if not isinstance(name, str) or name in ("", ".") or "/" in name or name.startswith(PREFIX):
                raise UsageError(
                    f"Worker.state: {name!r} cannot name an array: a name is a text without /, and does not begin "
                    f"with {PREFIX!r}"
                )
        arrays = {name: np.array(array) for name, array in own.items()} | to_arrays(self.node.codec.pushes)
        if state is None and not arrays:
            self._file.skip()
            return
        self._file.start(write_worker, Path(folder), self.context.index_of_all, arrays)

    def _answer_all_late(self) -> None:
        for each in [each for each in self._unanswered if all(task.done for task in each[2])]:
            self._answer_late(*each)
        if not self._unanswered:
            self.node.unregister(self._late)
            self._release()

    def _answer_late(self, request: Message, answer: Answer | Later, tasks: list[Task]) -> None:
        """Answer a call that ran at once, as soon as its answer is known and its pushes are durable, or have failed."""
        failed = next((task for task in tasks if task.error is not None), None)
        if failed is None and tasks and self.node.tasks.ahead.count:
            self.node.request_acknowledgements()
            return
        try:
            if failed is not None:
                self.node.wait(failed)
            known = answer.get() if isinstance(answer, Later) else answer
            if known is None:
                return
            self._answer(request, self._checked(request, known))
        except Exception as error:
            self.node.callee.fail(request, error)
        self._unanswered = [each for each in self._unanswered if each[0] is not request]

    def _restore(self, folder: str) -> None:
        restore = getattr(self.worker, "restore", None)
        if restore is not None:
            arrays, _ = load_worker(Path(folder), self.context.index_of_all)
            restore(**{name: array for name, array in arrays.items() if not name.startswith(PREFIX)})

    def _restore_filters(self, folder: str, workers: int) -> None:
        """Restore the state of the filters of `workers` former workers: each worker that of some."""
        mine = [
            {name: array for name, array in arrays.items() if name.startswith(PREFIX)}
            for number in range(self.context.index_of_all, workers, self.context.count_of_all)
            for arrays in [load_worker_if_any(Path(folder), number)]
        ]
        ring = self.node.view.ring
        restore_states(
            self.node.codec.pushes, mine, lambda name: ring.cuts(self.context.vectors[name].spec.extent)
        )

    def _rebuild(self) -> None:
        rebuild = getattr(self.worker, "rebuild", None)
        if rebuild is not None:
            rebuild()

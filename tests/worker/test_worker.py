"""The worker: its calls, what they wait for, answer and fail with, and what it takes back when it leaves."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast
from weakref import ref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips import Cluster, Context, KeyRange, VectorSpec
from mpips.calls import BuiltInCall
from mpips.checkpoint.loading import load_worker
from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.view import first_view
from mpips.config.job_file import Job
from mpips.errors import InputError, RemoteError, ShardLost
from mpips.rank.simulation import simulate
from mpips.server.snapshot_file import SnapshotFile
from mpips.storage.updates import update
from mpips.tasks.task import Task
from mpips.transport.in_memory import Network
from mpips.transport.message import Command, Kind, Message
from mpips.transport.network_faults import Fault, random_delays
from mpips.worker.worker import Answer, CallExecutor, Later, at_once

KEYS = np.arange(100, dtype=np.uint64)


@update("settling.refuses")
def refuses(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Raise an error for rows with a negative number, else add."""
    if rows.size and rows.min() < 0:
        raise ValueError("a negative row")
    values[slots] += rows


class Worker:
    """Pushes, and waits or not."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self.pushes: list[Task] = []

    def push(self, value: float, times: int = 1) -> None:
        vector = self.context.vectors["v"]
        self.pushes = [vector.push(KEYS, np.full(100, value)) for _ in range(times)]

    def chain(self, value: float) -> None:
        vector = self.context.vectors["v"]
        first = vector.push(KEYS, np.full(100, value))
        first.then(lambda _: self.pushes.append(vector.push(KEYS, np.ones(100), after=[first])))

    def caught(self) -> str:
        task = self.context.vectors["v"].push(KEYS, np.full(100, -1.0))
        try:
            task.result()
        except RemoteError as error:
            return str(error)
        return ""

    def pulled(self) -> dict[str, Any]:
        vector, seen = self.context.vectors["v"], []
        pushed = vector.push(KEYS, np.ones(100))
        task = vector.pull(KeyRange(0, 3), after=[pushed]).then(
            lambda done: seen.append(done.result().tolist())
        )
        early = task.done
        return {"early": early, "rows": task.result().tolist(), "seen": seen, "again": task.result() is task.result(),
                "push": pushed.result()}  # fmt: skip

    def breaks(self) -> None:
        def broken(_: Task) -> None:
            raise KeyError("in a callback")

        self.context.vectors["v"].push(KEYS, np.ones(100)).then(broken)

    @at_once
    def soon(self, value: float) -> str:
        self.push(value)
        return "done"

    def pause(self, seconds: float) -> dict[str, Any]:
        """Let simulated time pass while messages move, as any pull would."""
        began = self.node.van.now()
        self.node.wait_until(lambda: self.node.van.now() > began + seconds)
        return {"began": began, "ended": self.node.van.now()}

    @at_once
    def interrupt(self) -> dict[str, Any]:
        return {"at": self.node.van.now()}

    def glance(self, pulls: int) -> dict[str, Any]:
        """Wait for the first of some pulls, then take what has arrived."""
        tasks = [self.context.vectors["v"].pull(KEYS) for _ in range(pulls)]
        self.node.wait(tasks[0])
        before = sum(task.done for task in tasks)
        self.context.take_arrived()
        return {"before": before, "after": sum(task.done for task in tasks)}

    def count(self, good: bool) -> dict[str, Any]:
        return {"n": np.int64(3) if good else object()}

    def raises(self, kind: str) -> None:
        raise InputError("line 7 is bad") if kind == "input" else RuntimeError("broken")

    def echo(self, keys: Any, values: Any, factor: int) -> Answer:
        return Answer({"n": len(keys)}, values * factor)

    def nothing(self) -> None:
        pass


def run(do: Callable[[Cluster], Any], **how: Any) -> Any:
    """Run a program on a vector `v` whose servers refuse negative rows."""

    def schedule(cluster: Cluster) -> Any:
        cluster.create_vector(VectorSpec("v", extent=100, update="settling.refuses"))
        return do(cluster)

    return simulate(schedule, Worker, **{"servers": 2, "workers": 2, **how})


def line(text: str) -> int:
    """Return the line of this file that has a text."""
    lines = Path(__file__).read_text(encoding="utf-8").splitlines()
    return next(number for number, each in enumerate(lines, 1) if text in each)


PUSHED = f"{__file__}:{line('self.pushes = [vector.push')}"


def test_a_push_that_fails_and_without_a_wait_for_it_fails_its_call_and_names_its_line() -> None:
    with pytest.raises(RemoteError) as raised:
        run(lambda cluster: cluster.workers.call("push", {"value": -1.0}))
    told = str(raised.value)
    assert "ValueError: a negative row" in told and PUSHED in told
    assert "push of vector v" in told and "(worker " in told
    # The update's own line.
    assert f'test_worker.py", line {line("raise ValueError(")}' in raised.value.trace


def test_a_result_is_waited_for_and_stays() -> None:
    """A push has none; a callback gets the result of its finished task at once."""
    (found,) = run(lambda cluster: cluster.workers.call("pulled"), workers=1)
    assert found == {"early": False, "rows": [1.0] * 3, "seen": [[1.0] * 3], "again": True, "push": None}


def test_the_result_of_a_call_is_its_replies() -> None:
    replies = run(
        lambda cluster: [reply.meta for reply in cluster.workers.start("push", {"value": 1.0}).result()]
    )
    assert len(replies) == 2


def test_a_call_has_settled_when_it_returns() -> None:
    def do(cluster: Cluster) -> float:
        cluster.workers.call("push", {"value": 1.0, "times": 50}, only=[0])
        found = cluster.node.wait(cluster.vectors["v"].pull(KeyRange(0, 100)))
        return float(found.sum())

    assert run(do, delays=random_delays(3, delay=0.01)) == 5000.0


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), at_fault=st.booleans())
def test_what_callbacks_issue_belongs_to_the_call(seed: int, at_fault: bool) -> None:
    def do(cluster: Cluster) -> float:
        cluster.workers.call("chain", {"value": -1.0 if at_fault else 1.0}, only=[0])
        return float(cluster.node.wait(cluster.vectors["v"].pull(KEYS)).sum())

    if at_fault:
        with pytest.raises(RemoteError, match="a negative row"):
            run(do, seed=seed)
    else:
        assert run(do, seed=seed, delays=random_delays(seed, delay=0.01)) == 200.0


def test_a_failure_that_the_program_has_handled_does_not_fail_the_call() -> None:
    told = run(lambda cluster: cluster.workers.call("caught", only=[0]))
    assert "a negative row" in told[0] and f":{line('np.full(100, -1.0)')}" in told[0]


def test_a_callback_that_fails_without_a_wait_fails_the_call() -> None:
    with pytest.raises(RemoteError, match="in a callback"):
        run(lambda cluster: cluster.workers.call("breaks"))


def test_a_call_that_runs_at_once_answers_when_its_pushes_are_applied_or_have_failed() -> None:
    def do(cluster: Cluster) -> Any:
        said = cluster.workers.call("soon", {"value": 2.0})
        return said, float(cluster.node.wait(cluster.vectors["v"].pull(KEYS)).sum())

    assert run(do, delays=random_delays(5, delay=0.01)) == (["done", "done"], 400.0)
    with pytest.raises(RemoteError) as raised:
        run(lambda cluster: cluster.workers.call("soon", {"value": -2.0}))
    assert PUSHED in str(raised.value)


def test_a_failure_of_an_immediate_call_does_not_fail_the_present_call() -> None:
    def do(cluster: Cluster) -> Any:
        long = cluster.workers.start("push", {"value": 1.0, "times": 100})
        with pytest.raises(RemoteError, match="a negative row"):
            cluster.workers.call("soon", {"value": -1.0})
        cluster.node.wait(long)
        return float(cluster.node.wait(cluster.vectors["v"].pull(KEYS)).sum())

    assert run(do, delays=random_delays(7, delay=0.01)) == 100 * 100 * 2.0


def test_a_call_after_one_that_failed_is_its_own() -> None:
    def do(cluster: Cluster) -> Any:
        with pytest.raises(RemoteError):
            cluster.workers.call("push", {"value": -1.0, "times": 5})
        return cluster.workers.call("nothing")

    assert run(do) == [{}, {}]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 1000), after=st.integers(20, 400))
def test_a_server_that_dies_meanwhile_loses_no_push_without_a_wait_for_it(seed: int, after: int) -> None:
    def do(cluster: Cluster) -> float:
        for _ in range(3):
            cluster.workers.call("push", {"value": 1.0, "times": 10})
        return float(cluster.node.wait(cluster.vectors["v"].pull(KEYS)).sum())

    faults = [Fault("kill", 2, after_messages=after)]
    delays = random_delays(seed, delay=0.002)
    assert run(do, servers=3, replicas=1, seed=seed, delays=delays, faults=faults) == 2 * 3 * 10 * 100


def test_a_server_without_a_replacement_ends_what_waits_for_it() -> None:
    with pytest.raises(ShardLost):
        run(
            lambda cluster: cluster.workers.call("push", {"value": 1.0, "times": 200}),
            servers=2,
            delays=random_delays(1, delay=0.01),
            faults=[Fault("kill", 2, after_messages=60)],
        )


# Calls: their order, arguments, answers and errors.


def test_calls_are_executed_one_after_the_other_and_urgent_ones_in_between() -> None:
    def schedule(cluster: Cluster) -> tuple[Any, ...]:
        first = cluster.workers.start("pause", {"seconds": 1.0})
        second = cluster.workers.start("pause", {"seconds": 1.0})
        urgent = cluster.workers.call("interrupt")
        return *cluster.node.wait(first), *cluster.node.wait(second), urgent[0]["at"]

    first, second, at = run(schedule, workers=1)
    assert first.meta["ended"] <= second.meta["began"]
    assert at < first.meta["ended"]


def test_a_worker_that_waits_for_one_answer_can_take_all_that_have_arrived() -> None:
    def schedule(cluster: Cluster) -> Any:
        return cluster.workers.call("glance", {"pulls": 5})

    assert run(schedule, workers=1) == [{"before": 1, "after": 5}]


def test_calls_carry_arrays_and_name_ranks() -> None:
    def schedule(cluster: Cluster) -> None:
        task = cluster.workers.start(
            "echo",
            each=[{"factor": 2}, {"factor": 3}],
            keys=np.arange(4, dtype=np.uint64),
            values=np.ones((4, 1)),
        )
        replies = cluster.node.wait(task)
        assert [r.meta["n"] for r in replies] == [4, 4]
        assert [r.values.sum() for r in replies] == [8.0, 12.0]
        one = cluster.workers.start(
            "echo", {"factor": 1}, only=[1], keys=np.arange(1, dtype=np.uint64), values=np.ones((1, 1))
        )
        assert [reply.sender for reply in cluster.node.wait(one)] == [cluster.workers.ranks[1]]

    run(schedule)


def test_an_answer_that_cannot_travel_fails_its_call_and_names_the_rank() -> None:
    def schedule(cluster: Cluster) -> None:
        with pytest.raises(RemoteError, match=r"rank 2 \(worker 0 on .*n is a object, which JSON") as caught:
            cluster.workers.call("count", each=[{"good": False}, {"good": True}])
        assert caught.value.rank == 2 and caught.value.is_usage
        assert cluster.workers.call("count", {"good": True}) == [{"n": 3}] * 2

    run(schedule, servers=1)


def test_errors_of_a_call_name_the_rank_and_keep_their_kind() -> None:
    def schedule(cluster: Cluster) -> None:
        with pytest.raises(RemoteError, match="RuntimeError: broken") as caught:
            cluster.workers.call("raises", {"kind": "other"})
        assert caught.value.rank in cluster.workers.ranks and not caught.value.is_input
        with pytest.raises(RemoteError, match="line 7 is bad") as caught:
            cluster.workers.call("raises", {"kind": "input"}, only=[1])
        assert caught.value.rank == cluster.workers.ranks[1] and caught.value.is_input
        with pytest.raises(RemoteError, match="no method '_private'"):
            cluster.workers.call("_private")

    run(schedule)


# One rank: what it registers, and which calls it executes when.

LAYOUT = Layout.of(5, LayoutSpec(servers=2, workers=2))
SCHEDULER, SERVER, RANK = 0, 1, 4


class Program:
    """A program's worker that records its calls, and sends requests of its own to a server."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self.share = np.ones(8)
        self.log: list[str] = []

    def _request(self) -> None:
        self.node.tasks.submit([(SERVER, Message(Kind.REQUEST, Command.CALL))])

    def note(self, text: str) -> dict[str, int]:
        self.log.append(text)
        return {"since": self.node.workers_since}

    @at_once
    def now(self) -> str:
        self.log.append("now")
        return "answer"

    @at_once
    def request(self) -> str:
        self._request()
        return "answer"

    def long(self, during: Callable[[], Any]) -> dict[str, bool]:
        for item in self.context.polling(range(3)):
            self.log.append(f"item {item}")
            during()
        return {"whole": True}

    def state(self) -> dict[str, Any]:
        return {"share": self.share}

    def restore(self, share: Any) -> None:
        self.share = share


def idle() -> None:
    raise AssertionError("the worker waits, and nothing can arrive")


class Rank:
    """The node of a worker, without the others: messages are put in, and what it sends is kept."""

    def __init__(self) -> None:
        van = Network(5).vans[RANK]
        self.node = Node(van, LAYOUT, first_view(LAYOUT))
        self.file = SnapshotFile(self.node)
        self.sent: list[Message] = []
        van.send = lambda dest, message: self.sent.append(message)  # type: ignore[method-assign]
        van.idle = idle  # type: ignore[method-assign]
        self._time = 0

    def worker(self, program: Callable[[Context], Any] = Program) -> CallExecutor:
        executor = CallExecutor(self.node, program, cast(Job, None), None, self.file)
        executor.enter()
        return executor

    @property
    def registered(self) -> tuple[Any, ...]:
        node = self.node
        return dict(node.handlers), dict(node.controls), list(node.on_tick), list(node.on_view)

    def call(self, name: str, since: int = 0, **args: Any) -> int:
        """Let a call of the scheduler arrive; return its time."""
        request = Message(Kind.REQUEST, Command.CALL, SCHEDULER, origin=SCHEDULER, time=self._time)
        request.meta = {"call": name, "args": args, "workers_since": since}
        self._time += 1
        self.node.take(request)
        self.node.act()
        return request.time

    def notify(self, name: str, **args: Any) -> None:
        self.node.take(Message(Kind.CONTROL, Command.NOTIFY, SCHEDULER, meta={"call": name, "args": args}))

    def reply(self, time: int, **meta: Any) -> None:
        """Let the server answer a request of this rank; with metadata, by a failure."""
        kind = Kind.FAILURE if meta else Kind.REPLY
        self.node.take(Message(kind, Command.CALL, SERVER, origin=RANK, time=time, meta=meta))

    def tick(self) -> None:
        for ticking in self.node.on_tick:
            ticking()

    def answers(self) -> list[tuple[int, Kind, Any]]:
        """Return and forget the time, kind and metadata of each call that was answered since the last time."""
        found = [(each.time, each.kind, each.meta) for each in self.sent if each.kind is not Kind.REQUEST]
        self.sent.clear()
        return found


def execute(executor: CallExecutor) -> None:
    """Execute all calls that have arrived."""
    executor.run(lambda: not executor.calls)


def test_a_worker_that_has_left_is_released_with_its_data() -> None:
    """Also if Python does not look for objects that refer to themselves, which it does after hours."""
    gc.collect()
    gc.disable()
    try:
        executor = Rank().worker()
        program = weakref.ref(executor.worker)
        executor._create_vector({"name": "w", "extent": 9}, 1, 0)
        vector = executor.context.vectors["w"]
        # Vectors keep prepared requests, with the keys.
        vector.key_list(np.arange(3, dtype=np.uint64))
        held = [weakref.ref(each) for each in (executor, executor.context, vector, vector._planner)]
        executor.leave()
        assert program() is None
        del executor, vector
        assert [each() for each in held] == [None] * 4
    finally:
        gc.enable()


def test_a_worker_that_leaves_takes_back_all_that_it_registered() -> None:
    rank = Rank()
    before = rank.registered
    executor = rank.worker()
    assert set(rank.node.handlers) == {Command.CALL}
    assert set(rank.node.controls) - set(before[1]) == {Command.NOTIFY}
    executor.leave()
    assert rank.registered == before


def test_a_worker_that_leaves_keeps_no_data_alive_and_joins_again_without_another_tick() -> None:
    rank = Rank()
    before, shares = rank.registered, []
    for _ in range(3):
        executor = rank.worker()
        entered = rank.registered[2:]
        shares.append(ref(executor.worker.share))
        rank.call("note", text="a")
        rank.call("now")
        execute(executor)
        executor.leave()
        del executor
        gc.collect()
        assert [share() is None for share in shares] == [True] * len(shares)
        assert rank.registered == before and entered == before[2:]


def test_calls_that_arrive_before_the_role_is_taken_wait_for_it() -> None:
    rank = Rank()
    time = rank.call("now")
    assert rank.answers() == []
    rank.worker()
    rank.node.act()
    assert [(at, kind) for at, kind, _ in rank.answers()] == [(time, Kind.REPLY)]


def test_calls_are_executed_in_order_until_the_role_ends_between_two() -> None:
    rank = Rank()
    executor = rank.worker()
    for text in "abc":
        rank.call("note", text=text)
    assert executor.worker.log == [], "they wait for the worker's loop"
    executor.run(lambda: len(executor.worker.log) == 2)
    assert executor.worker.log == ["a", "b"] and len(executor.calls) == 1


def test_a_call_knows_the_epoch_of_the_worker_set_that_it_was_issued_for() -> None:
    rank = Rank()
    executor = rank.worker()
    rank.call("note", since=7, text="a")
    rank.call("note", since=9, text="b")
    execute(executor)
    assert [meta for _, _, meta in rank.answers()] == [{"since": 7}, {"since": 9}]


def test_a_call_that_runs_at_once_is_executed_and_answered_when_it_arrives() -> None:
    rank = Rank()
    executor = rank.worker()
    rank.call("note", text="later")
    time = rank.call("now")
    assert executor.worker.log == ["now"] and [at for at, _, _ in rank.answers()] == [time]


@pytest.mark.parametrize("during", [False, True])
def test_an_answer_that_is_known_later_is_sent_as_soon_as_it_is_known(during: bool) -> None:
    """At the end of the call that makes it known, or during it; the next tick is a second later."""

    class Late:
        known = False

        def __init__(self, context: Context) -> None:
            self.context = context

        def work(self) -> dict[str, Any]:
            self.known = during
            self.context.take_arrived()
            self.known = True
            return {}

        @at_once
        def result(self) -> Later:
            return Later(lambda: Answer({}) if self.known else None)

    def schedule(cluster: Cluster) -> float:
        late = cluster.workers.start("result")
        cluster.workers.start("work")
        late.result()
        return cluster.node.van.now()

    assert simulate(schedule, Late, tick=1.0) < 1.0


@pytest.mark.parametrize("fails", [False, True])
def test_a_worker_that_has_left_still_answers_a_call_that_ran_at_once(fails: bool) -> None:
    rank = Rank()
    before = rank.registered
    executor = rank.worker()
    time = rank.call("request")
    executor.leave()
    assert rank.answers() == [] and len(rank.node.on_tick) == len(before[2]) + 1
    rank.tick()
    assert rank.answers() == [], "its request is not answered yet"
    rank.reply(0, **({"text": "no"} if fails else {}))
    rank.tick()
    ((at, kind, _),) = rank.answers()
    assert (at, kind) == (time, Kind.FAILURE if fails else Kind.REPLY)
    assert rank.registered == before, "nothing is left of it"


def test_the_present_call_does_not_wait_for_requests_of_one_that_ran_at_once() -> None:
    rank = Rank()
    executor = rank.worker()
    time = rank.call("long", during=lambda: rank.call("request") if not rank.node.tasks.unfinished else None)
    execute(executor)
    assert [(at, kind) for at, kind, _ in rank.answers()] == [(time, Kind.REPLY)]
    assert len(rank.node.tasks.unfinished) == 1


@pytest.mark.parametrize(("since", "cut"), [(-1, True), (0, True), (1, False)])
def test_only_a_call_issued_at_that_time_or_later_is_cut_short(since: int, cut: bool) -> None:
    rank = Rank()
    executor = rank.worker()
    rank.call("long", during=lambda: rank.notify(BuiltInCall.CUT_SHORT, since=since))
    execute(executor)
    ((_, kind, meta),) = rank.answers()
    assert kind is (Kind.FAILURE if cut else Kind.REPLY) and bool(meta.get("is_cut_short")) is cut
    assert executor.worker.log == [f"item {item}" for item in range(1 if cut else 3)]


def test_the_call_after_one_that_was_cut_short_is_whole() -> None:
    rank = Rank()
    executor = rank.worker()
    rank.call("long", during=lambda: rank.notify(BuiltInCall.CUT_SHORT, since=0))
    rank.call("long", during=lambda: None)
    execute(executor)
    assert [kind for _, kind, _ in rank.answers()] == [Kind.FAILURE, Kind.REPLY]


def test_a_notified_method_is_not_answered_and_the_failure_of_its_requests_is_raised() -> None:
    rank = Rank()
    executor = rank.worker()
    rank.notify("note", text="a")
    assert executor.worker.log == ["a"] and rank.sent == []
    rank.notify("request")
    with pytest.raises(RemoteError, match="no room"):
        rank.reply(0, text="no room")


@pytest.mark.parametrize("name", ["_request", "no_such"])
def test_a_method_that_is_private_or_absent_is_no_call(name: str) -> None:
    rank = Rank()
    executor = rank.worker()
    rank.call(name)
    execute(executor)
    ((_, kind, meta),) = rank.answers()
    assert kind is Kind.FAILURE and f"the program's Worker has no method '{name}'" in meta["text"]
    assert rank.node.tasks.time == 0


def test_a_vector_that_the_scheduler_creates_is_in_the_context() -> None:
    rank = Rank()
    executor = rank.worker()
    rank.call(BuiltInCall.CREATE_VECTOR, spec={"name": "w", "extent": 9}, number=3, expect=0)
    execute(executor)
    vector = executor.context.vectors["w"]
    assert (vector.spec, vector.number) == (VectorSpec("w", extent=9), 3)


# Checkpoints.


class LateWriter:
    """A writer that writes when it is told to."""

    def __init__(self) -> None:
        self.write: Callable[[], Any] = lambda: None

    def start(self, write: Callable[..., Any], *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        self.write = lambda: done.set_result(write(*arguments))
        return done


def test_a_snapshot_is_the_state_at_the_call_and_its_entry_is_sent_when_it_is_written(tmp_path: Path) -> None:
    rank, writer = Rank(), LateWriter()
    rank.file = SnapshotFile(rank.node, writer)
    executor = rank.worker()
    rank.call(BuiltInCall.SNAPSHOT, folder=str(tmp_path))
    execute(executor)
    executor.worker.share[:] = 5.0
    rank.answers()
    time = rank.call(BuiltInCall.WRITTEN)
    rank.tick()
    assert rank.answers() == [] and not executor.calls, "it waits for the file, not for other calls"
    writer.write()
    rank.tick()
    ((at, _, entry),) = rank.answers()
    # The second of two workers.
    assert at == time and (entry["kind"], entry["number"]) == ("worker", 1)
    arrays, _ = load_worker(tmp_path, 1)
    assert {name: array.tolist() for name, array in arrays.items()} == {"share": [1.0] * 8}


def test_a_worker_restores_the_state_that_it_saved(tmp_path: Path) -> None:
    rank = Rank()
    executor = rank.worker()
    executor.worker.share[:] = 5.0
    rank.call(BuiltInCall.SNAPSHOT, folder=str(tmp_path))
    execute(executor)
    executor.leave()
    again = rank.worker()
    rank.call(BuiltInCall.RESTORE, folder=str(tmp_path))
    execute(again)
    assert again.worker.share.tolist() == [5.0] * 8


@pytest.mark.parametrize("name", ["", ".", "a/b", "filter.w.0.significant.rows", 7])
def test_a_state_that_could_not_be_restored_is_refused_when_it_is_saved(tmp_path: Path, name: Any) -> None:
    rank = Rank()
    executor = rank.worker()
    executor.worker.state = lambda: {name: np.ones(3)}
    rank.call(BuiltInCall.SNAPSHOT, folder=str(tmp_path))
    execute(executor)
    ((_, kind, error),) = rank.answers()
    assert kind is Kind.FAILURE and f"Worker.state: {name!r} cannot name an array" in error["text"]
    assert not list(tmp_path.iterdir())


class Stateless:
    """A program's worker without saved state."""

    def __init__(self, context: Context) -> None:
        self.rebuilt = 0


class Rebuilding(Stateless):
    """One that makes its state anew."""

    def rebuild(self) -> None:
        self.rebuilt += 1


def test_a_worker_without_state_writes_no_file_and_restores_none(tmp_path: Path) -> None:
    rank = Rank()
    executor = rank.worker(Stateless)
    for name in (BuiltInCall.SNAPSHOT, BuiltInCall.RESTORE):
        rank.call(name, folder=str(tmp_path))
    rank.call(BuiltInCall.REBUILD)
    execute(executor)
    rank.call(BuiltInCall.WRITTEN)
    rank.tick()
    assert rank.answers() == [(time, Kind.REPLY, {}) for time in range(4)] and not list(tmp_path.iterdir())


def test_a_worker_that_can_rebuild_its_state_is_asked_to() -> None:
    rank = Rank()
    executor = rank.worker(Rebuilding)
    rank.call(BuiltInCall.REBUILD)
    execute(executor)
    assert executor.worker.rebuilt == 1

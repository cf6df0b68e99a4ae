"""A node: refused requests, waiting and working, injected faults, repeated messages, and leaving together."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from mpi4py import MPI

from mpips.cluster.departure import Fenced, Stopped
from mpips.cluster.faults import Chance, Faults, FaultsSpec, Slow, Used
from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import TICK, Node
from mpips.cluster.outbox import LARGE, TURN
from mpips.cluster.view import Loss, View, first_view, without
from mpips.errors import InputError, RemoteError, WorkerLost, exit_code
from mpips.transport.in_memory import Network, TwinVan
from mpips.transport.message import Command, Kind, Message, missing_of

LAYOUT = Layout.of(3, LayoutSpec(servers=1, workers=1))
SCHEDULER, SERVER, WORKER = range(3)


def nodes(network: Network, **options: Any) -> list[Node]:
    return [Node(van, LAYOUT, first_view(LAYOUT), **options) for van in network.vans]


def call(**fields: Any) -> Message:
    return Message(Kind.REQUEST, Command.CALL, **fields)


def settle(some: list[Node]) -> None:
    """Poll each node until none has anything to do."""
    while sum(node.poll() for node in some):
        pass


# What is refused, what waits, and what is dropped.


def later(epoch: int, *gone: int) -> View:
    """The view of a later epoch, without some ranks."""
    view = replace(first_view(LAYOUT), epoch=epoch)
    return without(view, [Loss(rank, "worker", "died", 0.0) for rank in gone])


def test_a_request_of_a_later_epoch_waits_for_the_view() -> None:
    scheduler, server, _ = all_nodes = nodes(Network(3))
    served: list[tuple[int, int]] = []

    def serve(request: Message) -> None:
        served.append((request.epoch, server.view.epoch))
        server.callee.reply(request)

    server.handlers[Command.CALL] = serve
    before = scheduler.tasks.submit([(SERVER, call())])
    scheduler.adopt(later(1))
    after = scheduler.tasks.submit([(SERVER, call())])
    scheduler.adopt(later(2))
    last = scheduler.tasks.submit([(SERVER, call())])
    settle(all_nodes)
    assert before.done and not after.done and not last.done and served == [(0, 0)]
    server.adopt(later(1))
    settle(all_nodes)
    assert after.done and not last.done and served == [(0, 0), (1, 1)]
    server.adopt(later(2))
    settle(all_nodes)
    assert last.done and served == [(0, 0), (1, 1), (2, 2)]
    assert before.error is after.error is last.error is None


def test_messages_from_an_excluded_rank_are_dropped() -> None:
    _, server, worker = all_nodes = nodes(Network(3))
    served: list[int] = []
    server.handlers[Command.CALL] = lambda request: served.append(request.sender)
    worker.tasks.submit([(SERVER, call())])
    worker.van.send(SERVER, Message(Kind.REQUEST, Command.CALL, WORKER, origin=WORKER, epoch=1, time=1))
    server.adopt(later(1, WORKER))
    settle(all_nodes)
    server.take(Message(Kind.REQUEST, Command.CALL, WORKER, origin=WORKER, epoch=1, time=2))
    settle(all_nodes)
    assert served == [] and server.callee.inbox.unfinished() == 0


@pytest.mark.parametrize("late", ["reply", "failure", "missing", "acknowledged"])
def test_a_late_answer_to_a_former_worker_answers_nothing_of_the_scheduler_that_it_is_now(late: str) -> None:
    _, server, worker = nodes(Network(3))
    taken: list[Message] = []
    server.handlers[Command.CALL] = taken.append
    former = worker.tasks.submit([(SERVER, call())])
    settle([server, worker])
    view = replace(later(1), leader=WORKER)
    server.adopt(view)
    worker.adopt(view)
    replies: list[dict[str, Any]] = []
    worker.call_as(view.origin)
    task = worker.tasks.submit([(SERVER, call())], lambda _, reply: replies.append(reply.meta))
    settle([server, worker])
    old, new = taken
    assert old.time == new.time and (old.origin, new.origin) == (WORKER, SCHEDULER)
    dropped: list[tuple[int, int]] = []
    worker.tasks.ahead.acknowledge = lambda address, time: dropped.append((address, time))  # type: ignore[method-assign]
    if late == "reply":
        server.callee.reply(old, meta={"of": "old"})
    elif late == "failure":
        server.callee.fail(old, ValueError("old"))
    elif late == "missing":
        server.answer(WORKER, missing_of(call(origin=WORKER, time=old.time), [(old.time, 1)]))
    else:
        control = Message(Kind.CONTROL, Command.ACKNOWLEDGED, origin=WORKER, after=((0, old.time),))
        server.outbox.send(WORKER, control)
    settle([server, worker])
    assert not task.done and task.error is None and not former.done
    assert not dropped and not worker.tasks.again
    server.callee.reply(new, meta={"of": "new"})
    settle([server, worker])
    assert task.done and replies == [{"of": "new"}]


def test_parts_at_a_lost_rank_fail_at_once_and_later_ones_too() -> None:
    scheduler, server, worker = nodes(Network(3))
    for node in (server, worker):
        node.handlers[Command.CALL] = node.callee.reply
    task = scheduler.tasks.submit([(SERVER, call()), (WORKER, call())])
    scheduler.adopt(later(1, WORKER))
    assert isinstance(task.error, WorkerLost) and "rank 2 (worker 0) is gone" in str(task.error)
    assert not task.done and not task.settled, "the others are still at it"
    server.adopt(later(1, WORKER))
    settle([scheduler, server])
    assert task.done
    again = scheduler.tasks.submit([(WORKER, call())])
    settle([scheduler, server])
    assert again.done and isinstance(again.error, WorkerLost)
    assert scheduler.tasks.unfinished == {}


def test_a_rank_that_is_in_no_view_any_more_leaves() -> None:
    worker = nodes(Network(3))[WORKER]
    with pytest.raises(Fenced):
        worker.adopt(later(1, WORKER))
    assert worker.role is None


def test_an_older_view_changes_nothing() -> None:
    worker = nodes(Network(3))[WORKER]
    reported: list[tuple[int, int]] = []
    worker.on_view.append(lambda before, now: reported.append((before.epoch, now.epoch)))
    for epoch in (3, 2, 3, 5, 0):
        worker.adopt(later(epoch))
    assert reported == [(0, 3), (3, 5)] and worker.view.epoch == 5


def test_requests_are_sent_again_where_another_primary_may_have_been_in_a_view_that_was_missed() -> None:
    layout = Layout.of(4, LayoutSpec(servers=2, workers=1))
    view = first_view(layout, replicas=1)
    network = Network(4)
    worker = Node(network.vans[3], layout, view)
    worker.tasks.submit([(~shard, call()) for shard in range(len(view.chains))])

    def adopt(epoch: int, since: int) -> int:
        """Go over to a view in which the last change of the first chain was at epoch `since`."""
        chains = (view.chains[0]._replace(since=since), *view.chains[1:])
        worker.adopt(replace(view, epoch=epoch, chains=chains))
        return worker.resent["moved"]

    assert adopt(1, 1) == 0, "its primary is the same"
    assert adopt(3, 2) == 0, "it has not changed in the view that was missed"
    assert adopt(5, 5) == 1, "in view 4 it may have had another primary"
    assert adopt(9, 5) == 1


def test_a_command_without_a_handler_is_refused() -> None:
    scheduler, server, _ = all_nodes = nodes(Network(3))
    server.handlers[Command.PULL] = server.callee.reply
    task = scheduler.tasks.submit([(SERVER, call())])
    settle(all_nodes)
    assert isinstance(task.error, RemoteError)
    assert task.error.text == "this rank serves no CALL requests" and task.error.role == "server 0"


def test_an_answer_that_cannot_be_encoded_fails_only_its_request() -> None:
    scheduler, server, _ = all_nodes = nodes(Network(3))
    answers = iter([np.ones((2, 1), bool), np.ones((2, 1))])
    server.handlers[Command.CALL] = lambda request: server.callee.reply(request, next(answers))
    first, second = (scheduler.tasks.submit([(SERVER, call())]) for _ in range(2))
    settle(all_nodes)
    assert first.done and "type bool cannot be sent" in str(first.error)
    assert second.done and second.error is None and server.callee.inbox.unfinished() == 0


def test_wait_raises_as_soon_as_one_part_has_failed() -> None:
    def lead(van: TwinVan) -> float:
        node = Node(van, LAYOUT, first_view(LAYOUT))
        task = node.tasks.submit([(SERVER, call()), (WORKER, call())])
        with pytest.raises(
            RemoteError, match=r"rank 2 \(worker 0 on .*\): this rank serves no CALL requests"
        ):
            node.wait(task)
        assert not task.done
        return van.now()

    def serve(van: TwinVan) -> None:
        node = Node(van, LAYOUT, first_view(LAYOUT))
        if van.rank == SERVER:  # it takes the call and never answers
            node.handlers[Command.CALL] = lambda request: None
        else:
            node.handlers[Command.PULL] = node.callee.reply
        node.wait_until(lambda: van.now() > 1.0)

    assert Network(3).run([lead, serve, serve])[0] < 0.5


def test_an_error_from_elsewhere_keeps_its_rank_when_it_is_passed_on() -> None:
    node = nodes(Network(3))[WORKER]
    own = node.describe(InputError("line 7\n is bad"))
    assert (own["rank"], own["role"], own["is_input"]) == (WORKER, "worker 0", True)
    assert own["text"] == "line 7 is bad"
    other = RemoteError(1, "server 0", "elsewhere", "broken", "its trace")
    assert node.describe(other) == {
        "rank": 1, "role": "server 0", "host": "elsewhere", "text": "broken", "trace": "its trace",
        "is_input": False,
    }  # fmt: skip


def test_another_rank_is_told_whether_files_or_mpi_have_failed() -> None:
    node = nodes(Network(3))[WORKER]
    for error, expected in (FileNotFoundError("x"), True), (MPI.Exception(1), True), (KeyError("x"), False):
        assert RemoteError.from_meta(node.describe(error), WORKER).is_environment is expected
        passed_on = node.describe(RemoteError.from_meta(node.describe(error), WORKER))
        assert passed_on.get("is_environment", False) is expected


def test_another_rank_is_told_that_a_disk_is_full() -> None:
    node = nodes(Network(3))[WORKER]
    for error, expected in (OSError(28, "No space left", "x"), 74), (FileNotFoundError(2, "no", "x"), 1):
        remote = RemoteError.from_meta(node.describe(error), WORKER)
        assert exit_code(error) == exit_code(remote) == expected
        assert exit_code(RemoteError.from_meta(node.describe(remote), WORKER)) == expected


def test_errors_of_files_are_a_line_that_names_them_and_others_keep_their_trace() -> None:
    node = nodes(Network(3))[WORKER]
    reported = []
    for error in (
        OSError(5, "Input/output error", "/scratch/a"),
        OSError(28, "No space left"),
        OSError(5, "Input/output error"),
    ):
        try:
            raise error
        except OSError as raised:
            reported.append(node.describe(raised))
    assert reported[0]["text"].startswith("/scratch/a: Input/output error (at ")
    assert [bool(each["trace"]) for each in reported] == [False, False, True]
    assert node.describe(KeyboardInterrupt())["text"] == "KeyboardInterrupt"


# Waiting and working.


def test_work_within_a_wait_is_not_waiting() -> None:
    network = Network(3)
    node = nodes(network)[WORKER]
    turns = iter([1.0, 2.0, 0.0])

    def done() -> bool:
        with node.time_use.working():
            network.time += (spent := next(turns))
        return spent == 0.0

    node.wait_until(done)  # two turns, with one idle tick after each
    assert node.time_use.worked == pytest.approx(3.0)
    assert node.time_use.waited == pytest.approx(network.time - 3.0) and 0 < node.time_use.waited < 0.1
    assert (
        node.account()["worked"] == node.time_use.worked and node.account()["waited"] == node.time_use.waited
    )


def test_poll_between_receives_a_stop_message_in_a_long_loop() -> None:
    scheduler, _, worker = nodes(Network(3))
    seen = []
    with pytest.raises(Stopped) as stopped:
        for item in worker.poll_between(range(10)):
            seen.append(item)
            if item == 3:
                scheduler.control(WORKER, Command.STOP, {"code": 5, "reason": "enough"})
    assert seen == [0, 1, 2, 3] and (stopped.value.code, stopped.value.reason) == (5, "enough")


# Faults.


def faulty(spec: FaultsSpec, **options: Any) -> tuple[Network, Node]:
    """Return the worker's node with faults, on a network whose time the faults' sleep moves."""
    network = Network(3)

    def sleep(seconds: float) -> None:
        network.time += seconds

    # A thread that computes all the time.
    now = network.vans[WORKER].now
    faults = Faults(spec, "worker", 0, now, sleep, lambda: Used(now(), 0), lambda signal: None)
    return network, Node(network.vans[WORKER], LAYOUT, first_view(LAYOUT), faults=faults, **options)


def test_a_slow_worker_works_for_longer_and_its_account_reports_it() -> None:
    network, node = faulty(FaultsSpec(slow=(Slow("worker", 0, 3.0),)))
    for _ in range(2):
        with node.time_use.working():
            network.time += 0.5
    assert network.time == pytest.approx(3.0) and node.time_use.worked == pytest.approx(3.0)
    assert node.time_use.waited == 0.0


def arrivals(network: Network, node: Node, until: float) -> list[float]:
    """Poll the node as time goes by; return when messages came to the server."""
    times = []
    while network.time < until:
        for _ in range(5):
            node.poll()
        while network.take(SERVER) is not None:
            times.append(network.time)
        network.time += 0.01
    return times


def test_delayed_and_duplicated_messages_arrive_later() -> None:
    spec = FaultsSpec(delay=Chance(1.0, 0.2), duplicate=Chance(1.0, 0.3))
    network, node = faulty(spec)
    node.tasks.submit([(SERVER, call())])
    assert network.take(SERVER) is None
    assert arrivals(network, node, 2.0) == pytest.approx([0.2, 0.5], abs=0.02)


def test_a_dropped_message_does_not_arrive() -> None:
    network, node = faulty(FaultsSpec(drop=Chance(1.0)))
    node.tasks.submit([(SERVER, call())])
    assert arrivals(network, node, 2.0) == []


@pytest.mark.parametrize(
    "spec",
    [FaultsSpec(drop=Chance(1.0)), FaultsSpec(delay=Chance(1.0, 9.0)), FaultsSpec(duplicate=Chance(1.0))],
)
def test_injected_faults_do_not_affect_control_messages(spec: FaultsSpec) -> None:
    network, node = faulty(spec)
    node.control(SERVER, Command.FAILED, {"text": "help"})
    assert arrivals(network, node, 1.0) == [0.0]


# Sending again.


@pytest.mark.parametrize("resend", [None, 0.5])
def test_silent_ranks_are_probed_less_and_less_often(resend: float | None) -> None:
    network = Network(3)
    worker = nodes(network, resend=resend)[WORKER]
    looked: list[float] = []
    probe = worker.tasks.probe
    worker.tasks.probe = lambda: (looked.append(network.time), probe())[1]  # type: ignore[method-assign]
    worker.tasks.submit([(SERVER, call())])
    times = arrivals(network, worker, 5.3)
    if resend is None:
        assert times == [0.0] and looked == []
        return
    gaps = np.diff(times)
    assert len(times) == 4 and gaps[0] >= resend and np.all(gaps[1:] > 1.5 * gaps[:-1])
    looks = np.diff(looked)
    assert looks.min() >= TICK * (1 - 1e-9), "one look per tick, not one per poll"
    assert looks.max() < 0.5 / 4, "but a few per period"


def test_retransmission_delivers_every_request_over_a_lossy_network() -> None:
    # The same faults as a job can ask for, in either direction.
    network = Network(3)
    spec = FaultsSpec(seed=3, drop=Chance(0.3), duplicate=Chance(0.2, 0.05), delay=Chance(0.3, 0.1))
    both = [
        Node(
            network.vans[rank], LAYOUT, first_view(LAYOUT), resend=0.2,
            faults=Faults(spec, "worker", rank, network.vans[rank].now),
        )
        for rank in (SERVER, WORKER)
    ]  # fmt: skip
    server, worker = both
    served: list[int] = []

    def serve(request: Message) -> None:
        served.append(request.time)
        server.callee.reply(request, meta={"time": request.time})

    server.handlers[Command.CALL] = serve
    answers: list[int] = []
    tasks = [
        worker.tasks.submit([(SERVER, call())], lambda _, reply: answers.append(reply.meta["time"]))
        for _ in range(50)
    ]
    while worker.tasks.unfinished:
        settle(both)
        network.time += 0.02
        assert network.time < 60
    assert all(task.done and task.error is None for task in tasks)
    assert sorted(served) == sorted(answers) == list(range(50))


# Leaving.


def leaving(waits: tuple[float | None, ...], patience: float) -> list[tuple[bool, float] | None]:
    """Let rank i leave after waits[i] seconds (None: go without a word); return what it was told, and when."""

    def program(wait: float | None) -> Callable[[TwinVan], tuple[bool, float] | None]:
        def leave(van: TwinVan) -> tuple[bool, float] | None:
            node = Node(van, LAYOUT, first_view(LAYOUT))
            if wait is None:
                return None
            node.wait_until(lambda: van.now() >= wait)
            return node.departure.leave(patience), van.now()

        return leave

    results: list[tuple[bool, float] | None] = Network(3, seed=1).run([program(wait) for wait in waits])
    return results


@pytest.mark.parametrize("waits", [(0.0, 0.0, 0.0), (0.0, 0.3, 0.6), (0.6, 0.0, 0.0), (0.0, 0.6, 0.6)])
def test_all_leave_when_the_last_one_reports_it(waits: tuple[float, ...]) -> None:
    last = max(waits)
    for reported in leaving(waits, patience=1.0):
        assert reported is not None and reported[0] and last <= reported[1] < last + 0.05


@pytest.mark.parametrize("gone", [0, 1, 2])
def test_ranks_that_do_not_finish_are_waited_for_until_the_timeout(gone: int) -> None:
    waits = tuple(None if rank == gone else 0.0 for rank in range(3))
    left = [reported for reported in leaving(waits, patience=0.5) if reported is not None]
    assert len(left) == 2
    for done, at in left:
        assert not done and 0.5 < at < 0.6


def test_what_is_still_being_sent_is_waited_for_and_a_late_stop_changes_nothing() -> None:
    network = Network(3)
    scheduler, _, worker = nodes(network)
    scheduler.control(WORKER, Command.GONE, {})
    scheduler.control(WORKER, Command.STOP, {"code": 1})
    left = iter([2, 1, 1, 0])
    asked: list[int] = []
    network.vans[WORKER].pending = lambda: (asked.append(n := next(left, 0)), n)[1]  # type: ignore[method-assign]
    assert worker.departure.leave(1.0)
    assert asked[:4] == [2, 1, 1, 0]


def test_small_messages_are_sent_together_at_the_end_of_a_turn() -> None:
    """A turn is over when nothing waits, or after so many messages; a view that is adopted ends it too."""
    network = Network(3)
    sender, receiver, _ = nodes(network)
    heard: list[tuple[int, int]] = []
    receiver.controls[Command.LOG] = lambda message: heard.append((message.time, message.epoch))

    def gather(*times: int) -> None:
        for time in times:
            sender.outbox.send_soon(1, Message(Kind.CONTROL, Command.LOG, time=time))

    def hear() -> list[tuple[int, int]]:
        while receiver.poll():
            pass
        got = heard.copy()
        heard.clear()
        return got

    gather(1, 2, 3)
    assert hear() == []
    assert not sender.poll() and sender.van.sent_messages == 1
    assert hear() == [(1, 0), (2, 0), (3, 0)]
    for _ in range(TURN):
        network.vans[2].send(0, Message(Kind.CONTROL, Command.LOGGED, sender=2))
    gather(4)
    for _ in range(TURN):
        assert hear() == [] and sender.poll()
    assert hear() == [(4, 0)]
    gather(5)
    sender.adopt(later(1))
    assert hear() == [(5, 0)]
    receiver.adopt(later(1))
    large = Message(Kind.CONTROL, Command.LOG, values=np.zeros(LARGE))
    sender.outbox.send_soon(1, large)
    assert len(hear()) == 1, "by itself, and at once"

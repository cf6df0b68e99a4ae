"""Recorded runs that are replayed under other schedules: the same bits."""

from __future__ import annotations

import random
import shutil
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import simulate

from mpips.cluster.view import View, repaired
from mpips.errors import (
    Diverged,
    InputError,
    NoWorkerLeft,
    RecordError,
    RemoteError,
    ShardLost,
    WorkerLost,
)
from mpips.filters.chain import Chain
from mpips.filters.named import chain_of
from mpips.ranges import KeyRange
from mpips.replay.history import (
    CELLS,
    History,
    read_cells,
    read_history,
)
from mpips.replay.recorder import (
    ANSWER,
    CHANGE,
    NOTIFY,
    WORKERS,
    Log,
    size,
)
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec
from mpips.tasks.task import Task
from mpips.transport.message import Command, Message
from mpips.transport.network_faults import Delays, Fault, random_delays
from mpips.worker.worker import Context

EXTENT = 40


def coarse_delays(seed: int, delay: float = 0.004, lost: float = 0.0) -> Delays:
    """Delay messages by whole milliseconds, so that several arrive at the same time, and a poll finds some of them.

    Some are `lost`, with that probability, and as many doubled.
    """
    delays = random_delays(seed, delay=delay, drop=lost, duplicate=lost)

    def rounded(source: int, dest: int, message: Message) -> list[float]:
        return [round(each, 3) for each in delays(source, dest, message)]

    rounded.loses = lost > 0  # type: ignore[attr-defined]
    return rounded


class RandomWorker:
    """A worker each of whose steps depends on all earlier events and their order: pulled values, finished tasks."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node
        self.tau, self.pushed_more = 2, 0

    def walk(self, first: int, steps: int) -> dict[str, Any]:
        """Pull, and push values that depend on it, some steps ahead; poll in between."""
        rng = random.Random(1000 * self.node.rank + first)
        soft, hard, summed = (self.context.vectors[name] for name in ("soft", "hard", "summed"))
        flying: dict[int, Task] = {}
        finished = 0
        for step in self.node.poll_between(range(first, first + steps)):
            self.node.wait_all(task for time, task in list(flying.items()) if time < step - self.tau)
            finished += sum(task.done for task in flying.values())
            flying = {time: task for time, task in flying.items() if not task.done}
            keys = np.array(sorted(rng.sample(range(EXTENT), 5)), np.uint64)
            found = self.node.wait(soft.pull(keys))
            rows = found / 3 + finished + self.pushed_more + len(flying)
            flying[step] = (hard if rng.random() < 0.5 else soft).push(keys, rows)
            flying[step + 10**6] = summed.push_pull(
                KeyRange(0, EXTENT), np.full(EXTENT, 1.0 + found.sum()), round=step
            )
        return {"finished": finished, "workers": self.context.count}  # the call waits for requests under way

    def nudge(self, by: int) -> dict[str, Any]:
        """Change what is pushed from now on, and push once, at any time."""
        self.pushed_more += by
        self.context.vectors["hard"].push(np.array([by], np.uint64), np.full(1, 1.0 + self.pushed_more))
        return {}

    nudge.at_once = True  # type: ignore[attr-defined]


def schedule(cluster: Cluster, calls: int = 3, steps: int = 4) -> dict[str, Any]:
    """Let the workers walk; return the result. Lost workers are replaced, or the others continue."""
    retry(cluster, lambda: begin(cluster))
    results: list[Any] = []
    rounds = count(0, steps)  # the numbers of interrupted rounds are not used again

    def call() -> None:
        task = cluster.workers.start("walk", {"first": next(rounds), "steps": steps})
        hint = cluster.decide(lambda: int(cluster.node.van.now() * 1e6) % 7)
        cluster.node.wait_all([task, cluster.workers.start("nudge", {"by": hint})])
        results.append([reply.meta for reply in task.result()])

    while len(results) < calls:
        retry(cluster, call)
    return {"results": results, "digests": [cluster.digest(vector) for vector in cluster.vectors.values()]}


def begin(cluster: Cluster) -> None:
    """Make the vectors, perhaps once more."""
    cluster.vectors.clear()
    for name, update, aggregate in (
        ("soft", "assign", False),
        ("hard", "add", False),
        ("summed", "add", True),
    ):
        spec = VectorSpec(name, "float64", extent=EXTENT, dense=aggregate, update=update, aggregate=aggregate)
        cluster.create_vector(spec)


def retry(cluster: Cluster, step: Callable[[], None]) -> None:
    """Repeat a step with the present workers until it succeeds."""
    while True:
        try:
            return step()
        except WorkerLost:
            cluster.regroup()


def replay(
    folder: Path, recorded: Callable[..., Any], seed: int, delay: float = 0.004, **layout: Any
) -> tuple[Any, Any]:
    """Replay a recorded run under another schedule."""
    history = read_history(folder / "record")
    history.save(folder / "replay")
    return simulate(
        recorded,
        RandomWorker,
        seed=seed,
        delays=coarse_delays(seed, delay=delay),
        replay=folder / "replay",
        **layout,
    )


@settings(max_examples=5)
@given(st.integers(0, 10**6), st.integers(1, 3), st.integers(1, 3), st.floats(0.0, 0.01))
def test_a_run_is_replayed_to_the_same_bits(seed: int, servers: int, workers: int, delay: float) -> None:
    layout = {"servers": servers, "workers": workers}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        delays = coarse_delays(seed, delay=delay)
        first = simulate(schedule, RandomWorker, seed=seed, delays=delays, record=place / "record", **layout)
        assert replay(place, schedule, seed + 1, **layout) == first


def test_other_schedules_give_other_bits() -> None:
    found = {
        str(simulate(schedule, RandomWorker, seed=seed, delays=coarse_delays(seed, delay=0.004), workers=3))
        for seed in range(4)
    }
    assert len(found) == 4


@settings(max_examples=5)
@given(st.data())
def test_a_run_in_which_ranks_die_is_replayed_without_deaths(data: st.DataObject) -> None:
    """Scheduler, servers and workers die at any instant; spares take the places of workers."""
    seed, spares = data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 2))
    layout = {"servers": 3, "workers": 3, "spares": spares, "schedulers": 2}
    victims = data.draw(st.lists(st.sampled_from([0, 2, 3, 5, 6, 7]), min_size=1, max_size=2, unique=True))
    faults = [Fault("kill", rank, after_messages=data.draw(st.integers(20, 900))) for rank in victims]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        delays = coarse_delays(seed, delay=0.004)
        first = simulate(
            schedule,
            RandomWorker,
            seed=seed,
            delays=delays,
            record=place / "record",
            replicas=2,
            faults=faults,
            **layout,
        )
        assert replay(place, schedule, seed + 1, **layout) == first


# Ranks that change their roles: in the replay no shard moves, so a worker may hold shards.

ORDERS = ("join server", "join worker", "leave server", "leave worker")


def follow(cluster: Cluster, order: str, pick: int, least: int) -> None:
    """Execute an order of `mpips ctl` if `least` ranks of each role stay, and wait until no shard moves."""
    if cluster.node.policy.is_replay:  # a replay takes no orders
        return
    view, membership = cluster.node.view, cluster.membership
    with suppress(InputError):
        if order == "join server":
            membership.join_server()
        elif order == "leave server" and len(view.ring.servers) > least:
            membership.leave_server(view.servers[pick % len(view.servers)])
        elif order == "join worker" and len(view.spares) > cluster.orders.joining:
            cluster.orders.joining += 1
        elif order == "leave worker" and len(set(view.workers) - cluster.orders.leaving) > least:
            cluster.orders.leaving.add(view.workers[pick % len(view.workers)])
    membership.tick()
    cluster.node.wait_until(lambda: at_rest(cluster.node.view, membership.replicas))


def at_rest(view: View, replicas: int) -> bool:
    """Return whether no shard moves, and no replica is missing."""
    return repaired(view, replicas) == view and not any(
        chain.closing or chain.learner >= 0 for chain in view.chains
    )


def with_orders(
    orders: Sequence[tuple[str, int]], folder: Path, least: int = 1
) -> Callable[[Cluster], dict[str, Any]]:
    """Return a program that executes orders between its calls, and saves a checkpoint after each."""

    def schedule(cluster: Cluster) -> dict[str, Any]:
        retry(cluster, lambda: begin(cluster))
        results: list[Any] = []
        rounds = count(0, 2)

        def turn() -> None:
            if cluster.renewed():
                cluster.regroup()
            task = cluster.workers.start("walk", {"first": next(rounds), "steps": 2})
            results.append([reply.meta for reply in cluster.node.wait(task)])
            cluster.coordinator.begin(folder, next(rounds), {"step": len(results)})
            cluster.accounts()
            results.append(cluster.workers.addresses)

        for order, pick in orders:
            follow(cluster, order, pick, least)
            retry(cluster, turn)
        retry(cluster, cluster.coordinator.settle)
        return {
            "results": results,
            "digests": [cluster.digest(vector) for vector in cluster.vectors.values()],
        }

    return schedule


def test_a_server_that_becomes_a_worker_and_a_worker_that_becomes_a_server_do_so_again(
    tmp_path: Path,
) -> None:
    """Rank 1 gives up its shards, becomes a worker, then a server again; at the end all former servers are workers."""
    orders = [
        ("leave server", 0), ("join worker", 0), ("leave worker", 2), ("join server", 0), ("leave worker", 1),
        ("leave server", 0), ("join server", 0), ("join worker", 0), ("leave server", 0), ("join worker", 0),
    ]  # fmt: skip
    program = with_orders(orders, tmp_path / "checkpoints")
    layout = {"servers": 2, "workers": 2}
    observed: dict[str, Any] = {}
    first = simulate(
        program,
        RandomWorker,
        seed=3,
        delays=coarse_delays(3),
        record=tmp_path / "record",
        observed=observed,
        **layout,
    )
    assert first["results"][1::2] == [
        (3, 4), (3, 4, 1), (3, 4), (3, 4), (3,), (3,), (3,), (3, 1), (3, 1), (3, 1, 2),
    ]  # fmt: skip
    assert observed["view"].servers == (4,)
    assert replay(tmp_path, program, 4, **layout) == first


@settings(max_examples=5)
@given(st.data())
def test_a_run_in_which_ranks_change_their_roles_is_replayed(data: st.DataObject) -> None:
    """Servers and workers come, go and die at any instant; a rank may become the other."""
    seed, spares = data.draw(st.integers(0, 10**6)), data.draw(st.integers(0, 1))
    orders = data.draw(
        st.lists(st.tuples(st.sampled_from(ORDERS), st.integers(0, 3)), min_size=2, max_size=8)
    )
    layout = {"servers": 3, "workers": 3, "spares": spares}
    victims = data.draw(st.lists(st.sampled_from([0, 1, 3, 4]), max_size=1))
    faults = [Fault("kill", rank, after_messages=data.draw(st.integers(20, 1500))) for rank in victims]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        program = with_orders(orders, place / "checkpoints", least=2)
        first = simulate(
            program, RandomWorker, seed=seed, delays=coarse_delays(seed), record=place / "record", replicas=1,
            faults=faults, **layout,
        )  # fmt: skip
        assert replay(place, program, seed + 1, **layout) == first


MOVES = ("server joins", "server leaves", "worker joins", "worker leaves", "notify")


def move(cluster: Cluster, what: str | None, number: int) -> None:
    """Execute an order from outside: a rank joins or leaves, or the workers are notified; none if no rank can."""
    membership, view = cluster.membership, cluster.node.view
    with suppress(InputError):
        if what == "server joins":
            membership.join_server()
        elif what == "server leaves":
            membership.leave_server(view.ring.servers[number % len(view.ring.servers)])
        elif what == "worker joins":
            cluster.orders.joining += 1
        elif what == "worker leaves" and len(view.workers) > 1:
            cluster.orders.leaving.add(view.workers[number % len(view.workers)])
        elif what == "notify":
            cluster.notify("nudge", {"by": number})


def with_changes(moves: list[tuple[str | None, int]]) -> Callable[[Cluster], Any]:
    """Return a schedule with a call of the workers for each move, which comes while that is under way."""

    def schedule(cluster: Cluster) -> dict[str, Any]:
        retry(cluster, lambda: begin(cluster))
        results: list[Any] = []
        rounds = count(0, 4)

        def call() -> None:
            task = cluster.workers.start("walk", {"first": next(rounds), "steps": 4})
            if not cluster.node.policy.is_replay:  # a replay takes no orders
                move(cluster, *moves[len(results)])
            cluster.node.wait(task)
            results.append([reply.meta for reply in task.result()])

        while len(results) < len(moves):
            retry(cluster, call)
            if cluster.renewed():
                cluster.regroup()
        return {
            "results": results,
            "digests": [cluster.digest(vector) for vector in cluster.vectors.values()],
        }

    return schedule


def filters() -> tuple[Chain, Chain]:
    """Make filters that hold rows back and round at random."""
    held = [{"name": "significant", "threshold": 0.5}, {"name": "fixed_point", "bytes": 2}]
    return chain_of(held, 3), chain_of(held[1:], 3)


@settings(max_examples=4)
@given(st.data())
def test_a_run_with_random_faults_is_replayed_without_them(data: st.DataObject) -> None:
    """Ranks die, hang for a while or forever, join and leave; messages are lost and doubled; filters are there."""
    draw = data.draw
    layout = {
        "servers": draw(st.integers(2, 3)), "workers": draw(st.integers(2, 3)), "spares": draw(st.integers(0, 2)),
        "schedulers": draw(st.integers(1, 2)),
    }  # fmt: skip
    fault = st.builds(
        Fault,
        st.sampled_from(["kill", "stop"]),
        st.integers(0, sum(layout.values()) - 1),
        after_messages=st.integers(20, 700),
        lasting=st.sampled_from([None, 0.2, 2.0]),
    )
    faults = [replace(each, lasting=None if each.act == "kill" else each.lasting) for each in
               draw(st.lists(fault, max_size=2, unique_by=lambda each: each.rank))]  # fmt: skip
    moves = draw(
        st.lists(st.tuples(st.sampled_from([None, *MOVES]), st.integers(0, 9)), min_size=3, max_size=4)
    )
    seed, lost = draw(st.integers(0, 10**6)), draw(st.sampled_from([0.0, 0.0, 0.02]))
    chains: dict[str, Any] = {"filters": filters} if draw(st.booleans()) else {}
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        try:
            first = simulate(
                with_changes(moves), RandomWorker, seed=seed, delays=coarse_delays(seed, 0.004, lost),
                record=place / "record", replicas=2, faults=faults, **chains, **layout,
            )  # fmt: skip
        except (ShardLost, NoWorkerLeft):
            return  # the faults left no complete model, or no worker
        assert first is not None
        try:
            assert replay(place, with_changes(moves), seed + 1, **chains, **layout) == first
        except RecordError as error:
            assert "such a run cannot be replayed" in str(error)


# A replay that cannot continue as recorded ends with an error.


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a small recorded run."""
    place = tmp_path_factory.mktemp("recorded")
    simulate(
        schedule,
        RandomWorker,
        seed=5,
        delays=coarse_delays(5, delay=0.004),
        record=place / "record",
        workers=2,
    )
    return place / "record"


def diverge(history: History, folder: Path) -> str:
    """Replay an impossible history; return the error message."""
    history.save(folder)
    with pytest.raises((Diverged, RemoteError)) as raised:
        simulate(schedule, RandomWorker, replay=folder, workers=2)
    return str(raised.value)


def test_a_shard_reports_which_change_does_not_come(recorded: Path, tmp_path: Path) -> None:
    history = read_history(recorded)
    shard = history.shards[0]
    shard.callers["time"][shard.first[8]] += 1000
    assert "shard 0 waits for its change 9, request" in diverge(history, tmp_path)


def test_a_worker_reports_which_answer_does_not_come(recorded: Path, tmp_path: Path) -> None:
    history = read_history(recorded)
    cells = history.workers[2] = history.workers[2].copy()
    at = np.flatnonzero(cells["kind"] == ANSWER)[3]
    cells["time"][at] += 1000
    message = diverge(history, tmp_path)
    assert f"worker 0 (rank 2) waits for the answer of shard {~cells['rank'][at]} to its request" in message


def test_another_request_than_the_recorded_one_is_detected(recorded: Path, tmp_path: Path) -> None:
    history = read_history(recorded)
    shard = history.shards[0]
    pushes = np.flatnonzero(shard.commands == Command.PUSH)
    shard.commands[pushes[0]] = Command.PUSH_PULL
    assert f"change {pushes[0] + 1}, request" in diverge(history, tmp_path)


def test_a_program_that_decides_more_is_detected(recorded: Path, tmp_path: Path) -> None:
    history = read_history(recorded)
    history.leader.decisions.pop()
    assert "asks for decision" in diverge(history, tmp_path)


# Files of records.


def test_a_torn_record_is_refused(recorded: Path, tmp_path: Path) -> None:
    for torn in ("shard-0000", "worker-0002"):
        place = shutil.copytree(recorded, tmp_path / torn)
        file = next(place.glob(f"{torn}*"))
        file.write_bytes(file.read_bytes()[:-5])
        with pytest.raises(RecordError, match=f"{torn}.*: truncated"):
            read_history(place)


@pytest.mark.parametrize("kind", [NOTIFY, WORKERS])
@pytest.mark.parametrize("text", [b"{", b"7", b'[-1, "a"]', b'{"call": 1}', b"\xff", b"[" * 100_000])
def test_an_unknown_text_is_refused(recorded: Path, tmp_path: Path, kind: int, text: bytes) -> None:
    log = Log(tmp_path / "worker-0002.bin", 2)
    log.add(kind, 0, 0, 0, 0, 0, len(text), text)
    log.close()
    with pytest.raises(RecordError, match=r"worker-0002\.bin: damaged: a text in it"):
        read_history(tmp_path)


def test_a_change_of_an_unknown_kind_is_refused(recorded: Path, tmp_path: Path) -> None:
    place = shutil.copytree(recorded, tmp_path / "record")
    for path in place.glob("shard-0000*"):
        raw = np.frombuffer(path.read_bytes(), CELLS).copy()
        raw["flags"][raw["kind"] == CHANGE] = 999
        path.write_bytes(raw.tobytes())
    with pytest.raises(RecordError, match="shard 0: change 1 has an unknown command"):
        read_history(place)


def test_a_missing_file_is_missed(recorded: Path, tmp_path: Path) -> None:
    place = shutil.copytree(recorded, tmp_path / "record")
    next(place.glob("shard-0000*")).unlink()
    with pytest.raises(RecordError, match=r"shard 0: rank \d was answered by a change"):
        read_history(place)
    with pytest.raises(RecordError, match="there is no record"):
        read_history(tmp_path / "nowhere")


def test_a_file_of_a_record_grows_and_counts_what_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "worker-0003.bin"
    log = Log(path, 3)
    for number in range(5000):
        log.add(CHANGE, 1, 2, 3, 1, 10 * number, number, b"text" if number % 7 == 0 else b"")
    before = read_cells(path)  # as if the process had been killed now
    log.close()
    assert (read_cells(path) == before).all()
    assert before[before["kind"] == CHANGE]["value"][-1] == 4999
    assert size(tmp_path) == {"bytes": path.stat().st_size, "cells": 1 + len(before)}

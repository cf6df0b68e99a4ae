"""Ranks die, hang, join and leave in simulated clusters: views are correct, and every push is applied exactly once."""

from __future__ import annotations

import random
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from simulated import simulate

from mpips.cluster.layout import Cause, Role
from mpips.cluster.view import GENERATION, NOBODY, View
from mpips.errors import InputError, NoWorkerLeft, ShardLost, WorkerLost
from mpips.scheduler.scheduler import Cluster
from mpips.storage.updates import VectorSpec, call
from mpips.transport.in_memory import Network, TwinVan
from mpips.transport.network_faults import Fault, no_delay, random_arrivals, random_delays
from mpips.worker.worker import Context

EXTENT = 1000
KEYS = np.arange(0, EXTENT, 7, dtype=np.uint64)


class Worker:
    """Adds 1 to all keys in aggregated rounds, and 1 to a key of its own by plain pushes."""

    def __init__(self, context: Context) -> None:
        self.context, self.node = context, context.node

    def go(self, first: int, count: int) -> dict[str, Any]:
        summed, plain = self.context.vectors["summed"], self.context.vectors["plain"]
        ones = np.ones((len(KEYS), 1), np.int64)
        tasks = []
        for number in range(first, first + count):
            tasks.append(summed.push_pull(KEYS, ones, round=number))
            own = np.array([number % 20, 500 + self.node.rank * 20 + number % 20], np.uint64)
            tasks.append(plain.push(own, np.ones((2, 1), np.int64)))
        self.node.wait_all(tasks)
        return {"rank": self.node.rank}


def create(cluster: Cluster) -> None:
    for name, aggregate in (("summed", True), ("plain", False)):
        cluster.create_vector(VectorSpec(name, "int64", 1, EXTENT, aggregate=aggregate))


def rows(cluster: Cluster, name: str) -> dict[int, int]:
    """Read a whole vector."""
    found: dict[int, int] = {}
    for keys, values in cluster.export(cluster.vectors[name]):
        found.update(zip(keys.tolist(), values[:, 0].tolist(), strict=True))
    return found


def whole(cluster: Cluster) -> bool:
    view = cluster.node.view
    return all(
        chain.members == view.ring.holders(shard, cluster.membership.replicas) and chain.learner == NOBODY
        for shard, chain in enumerate(view.chains)
    )


def until(cluster: Cluster, done: Callable[[], bool]) -> None:
    """Process messages until a condition holds, whichever rank leads."""
    cluster.node.wait_until(done)


def rest(cluster: Cluster, seconds: float) -> None:
    end = cluster.node.van.now() + seconds
    until(cluster, lambda: cluster.node.van.now() >= end)


def check(cluster: Cluster, pushed: int, workers: int) -> None:
    """Check that so many rounds of so many workers were applied, each once."""
    assert rows(cluster, "summed") == dict.fromkeys(KEYS.tolist(), pushed * workers)
    plain = rows(cluster, "plain")
    assert sum(plain[key] for key in plain if key < 20) == pushed * workers
    assert sum(plain[key] for key in plain if key >= 500) == pushed * workers


def go(cluster: Cluster, first: int, count: int = 3) -> None:
    cluster.workers.call("go", {"first": first, "count": count})


# One thing at a time.


@pytest.mark.parametrize("spares", [0, 1])
@pytest.mark.parametrize("dead", [1, 2, 3])
def test_a_dead_server_is_replaced_and_chains_are_complete_again(dead: int, spares: int) -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> None:
        create(cluster)
        go(cluster, 0)
        observed["network"].kill(dead)
        go(cluster, 3)
        until(cluster, lambda: bool(cluster.node.view.losses) and whole(cluster))
        go(cluster, 6)
        check(cluster, 9, 2)

    simulate(schedule, Worker, servers=3, workers=2, spares=spares, replicas=1, observed=observed)
    view: View = observed["view"]
    assert [(loss.rank, loss.role, loss.cause) for loss in view.losses] == [(dead, "server", "died")]
    assert view.roles[dead] is None
    if spares:
        assert view.roles[6] is Role.SERVER and view.ring.slots.index(6) == dead - 1, "in the same slot"
    assert len(view.servers) == 2 + spares
    assert observed["cluster"].membership.recovered.keys() == {dead}


def test_a_death_of_which_only_other_ranks_know_is_reported_to_the_leader(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    observed: dict[str, Any] = {}
    failed = TwinVan.failed
    # Over connections that MPI opens when they are used, not every rank learns of every death.
    monkeypatch.setattr(TwinVan, "failed", lambda van: failed(van) if van.rank in (1, 2) else [])

    def schedule(cluster: Cluster) -> None:
        create(cluster)
        observed["network"].kill(3)
        go(cluster, 0)
        observed["network"].kill(0)
        go(cluster, 3)
        check(cluster, 6, 2)

    simulate(schedule, Worker, servers=3, workers=2, spares=1, replicas=1, observed=observed)
    view: View = observed["view"]
    assert [(loss.rank, loss.cause) for loss in view.losses] == [(3, "died"), (0, "died")]


def test_two_servers_may_die_at_once_with_two_copies() -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> None:
        create(cluster)
        go(cluster, 0)
        for rank in (2, 3):
            observed["network"].kill(rank)
        go(cluster, 3)
        until(cluster, lambda: len(cluster.node.view.losses) == 2 and whole(cluster))
        check(cluster, 6, 2)

    simulate(schedule, Worker, servers=4, workers=2, spares=1, replicas=2, observed=observed)
    assert set(observed["view"].servers) == {1, 4, 7}


def losses_noted(log: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """List what the ranks' logs say of lost ranks."""
    return [record.__dict__["facts"] for record in log.records if record.getMessage() == "lost"]


def test_the_loss_of_all_copies_is_an_error_that_says_what_would_help(
    caplog: pytest.LogCaptureFixture,
) -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> None:
        create(cluster)
        go(cluster, 0)
        observed["network"].kill(1)
        go(cluster, 3)

    with pytest.raises(ShardLost, match=r"rank 1 died.*--resume latest"):
        simulate(schedule, Worker, servers=2, workers=1, spares=1, observed=observed)
    (noted,) = losses_noted(caplog)
    assert noted["lost"] == 1 and noted["fatal"] and noted["error"].startswith("it ended without a message")


def test_a_loss_that_is_survived_is_noted_once(caplog: pytest.LogCaptureFixture) -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> None:
        create(cluster)
        observed["network"].kill(2)
        until(cluster, lambda: bool(cluster.node.view.losses) and whole(cluster))

    simulate(schedule, Worker, servers=3, workers=1, replicas=1, observed=observed)
    (noted,) = losses_noted(caplog)
    assert noted["lost"] == 2 and "fatal" not in noted


@pytest.mark.parametrize(("schedulers", "spares", "heir"), [(2, 1, 1), (1, 1, 4), (1, 0, 1)])
def test_a_dead_scheduler_is_succeeded(schedulers: int, spares: int, heir: int) -> None:
    observed: dict[str, Any] = {}
    begun: list[int] = []

    def schedule(cluster: Cluster) -> int:
        begun.append(cluster.node.rank)
        create(cluster)
        go(cluster, 0)
        if cluster.node.rank == 0:
            observed["network"].kill(0)
        go(cluster, 3)
        check(cluster, 6, 1)
        return cluster.node.rank

    leads = simulate(
        schedule,
        Worker,
        servers=2,
        workers=1,
        spares=spares,
        schedulers=schedulers,
        replicas=1,
        observed=observed,
    )
    view: View = observed["view"]
    assert leads == view.leader == heir and begun == [0, heir]
    assert view.epoch >= GENERATION and view.origin == 0
    assert [(loss.rank, loss.role) for loss in view.losses] == [(0, "scheduler")]


@pytest.mark.parametrize("later", [0.0, 0.01, 0.04])
@pytest.mark.parametrize("dead", ["server", "worker"])
def test_a_scheduler_and_another_rank_that_die_together_are_replaced(dead: str, later: float) -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> tuple[int, set[str]]:
        create(cluster)
        go(cluster, 0)
        network: Network = observed["network"]
        if cluster.node.rank == 0:
            victim = {"server": 1, "worker": 3}[dead]
            network.plan(Fault("kill", victim, at=network.time + later))
            network.kill(0)
        for number in range(3):
            try:
                go(cluster, 3 + 10 * number)
                if not cluster.renewed():
                    break
            except WorkerLost:
                cluster.regroup()
        return cluster.node.rank, {each["role"] for each in cluster.accounts()}

    heir, roles = simulate(schedule, Worker, servers=2, workers=2, spares=1, replicas=1, observed=observed)
    assert heir == 5 and roles == {"scheduler", "server", "worker"}


@pytest.mark.parametrize("hung", [1, 2, 3])
def test_a_hung_rank_is_given_up_and_leaves_when_it_wakes(hung: int) -> None:
    observed: dict[str, Any] = {}
    ended: list[bool] = []

    def schedule(cluster: Cluster) -> None:
        create(cluster)
        go(cluster, 0)
        network: Network = observed["network"]
        network.stop(hung)
        go(cluster, 3)
        until(cluster, lambda: bool(cluster.node.view.losses) and whole(cluster))
        network.resume(hung)
        rest(cluster, 1.0)
        ended.append(hung not in network._alive)
        go(cluster, 6)
        check(cluster, 9, 1)

    simulate(schedule, Worker, servers=3, workers=1, spares=1, replicas=1, observed=observed)
    view: View = observed["view"]
    assert [(loss.rank, loss.cause) for loss in view.losses] == [(hung, "hung")]
    assert ended == [True], "it found that it was out, and left"


def test_a_short_pause_is_no_death() -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> None:
        create(cluster)
        go(cluster, 0)
        observed["network"].stop(2)
        rest(cluster, 0.5)
        observed["network"].resume(2)
        go(cluster, 3)
        rest(cluster, 1.0)
        check(cluster, 6, 1)

    simulate(schedule, Worker, servers=2, workers=1, replicas=1, observed=observed)
    assert observed["view"].losses == ()


def test_a_hung_scheduler_is_excluded_and_succeeded() -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> int:
        network: Network = observed["network"]
        create(cluster)
        go(cluster, 0)
        if cluster.node.rank == 0:
            network.stop(0)
        go(cluster, 3)
        network.resume(0)
        rest(cluster, 1.0)
        go(cluster, 6)
        check(cluster, 9, 2)
        return cluster.node.rank

    assert simulate(schedule, Worker, servers=2, workers=2, schedulers=2, replicas=1, observed=observed) == 1
    assert [(loss.rank, loss.cause) for loss in observed["view"].losses] == [(0, "hung")]


# A rank that hangs and holds the only copy of some keys.


def holder_hangs(
    servers: int, schedulers: int, lasting: float | None, observed: dict[str, Any], **how: Any
) -> Any:
    """Let all servers but the first leave, and then stop that one."""

    def schedule(cluster: Cluster) -> int:
        create(cluster)
        go(cluster, 0)
        network: Network = observed["network"]
        for rank in cluster.node.view.servers[1:]:
            cluster.membership.leave_server(rank)
        until(cluster, lambda: whole(cluster))
        network.plan(Fault("stop", schedulers, at=network.time, lasting=lasting))
        go(cluster, 3)
        check(cluster, 6, 1)
        return cluster.node.rank

    return simulate(
        schedule, Worker, servers=servers, workers=1, schedulers=schedulers, replicas=servers - 1,
        tick=0.01, observed=observed, **how
    )  # fmt: skip


@pytest.mark.parametrize("servers", [1, 2, 3])
def test_the_only_holder_of_keys_is_not_waited_for_forever(
    caplog: pytest.LogCaptureFixture, servers: int
) -> None:
    lost = r"^rank 1 \(server 0\): no heartbeat for 5 s \(\[heartbeat\] give_up\).*--resume latest"
    with pytest.raises(ShardLost, match=lost):
        holder_hangs(servers, 1, None, {})
    (noted,) = losses_noted(caplog)
    assert noted == {"lost": 1, "cause": Cause.HUNG, "error": Cause.HUNG.text, "fatal": True}
    assert "[heartbeat] patience" in Cause.HUNG.text


def test_the_only_holder_of_keys_is_waited_for_for_a_while(caplog: pytest.LogCaptureFixture) -> None:
    observed: dict[str, Any] = {}
    assert holder_hangs(2, 2, 12.0, observed, give_up=20.0) == 0
    assert observed["view"].losses == (), "it is no loss"
    noted = [record.__dict__["facts"] for record in caplog.records if record.getMessage() == "silent"]
    assert noted == [{"silent": 2}], "but people are told"


def test_a_leader_that_is_the_only_holder_of_keys_is_not_waited_for_forever() -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> None:
        create(cluster)
        observed["network"].kill(0)
        go(cluster, 0)
        assert cluster.node.rank == 1
        observed["network"].stop(1)
        go(cluster, 3)

    with pytest.raises(ShardLost, match=r"^rank 1 \(server 0\): no heartbeat"):
        simulate(schedule, Worker, servers=2, workers=1, tick=0.01, observed=observed)


def test_no_rank_leaves_while_a_successor_waits_for_a_hung_rank() -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> int:
        create(cluster)
        go(cluster, 0)
        if cluster.node.rank == 0:
            network: Network = observed["network"]
            network.plan(Fault("stop", 2, at=network.time, lasting=50.0))
            network.kill(0)
        go(cluster, 3)
        check(cluster, 6, 1)
        return cluster.node.rank

    how: dict[str, Any] = {"servers": 1, "workers": 1, "schedulers": 2, "tick": 0.02, "horizon": 70.0}
    assert simulate(schedule, Worker, give_up=0.0, observed=observed, **how) == 1
    with pytest.raises(ShardLost, match=r"^rank 2 \(server 0\): no heartbeat for 30 s"):
        simulate(schedule, Worker, give_up=30.0, observed=observed, **how)


@pytest.mark.parametrize("hung", [0, 1, 3])
def test_where_no_rank_outlives_another_any_that_hangs_ends_the_run(
    monkeypatch: pytest.MonkeyPatch, hung: int
) -> None:
    monkeypatch.setattr(TwinVan, "survives", False)
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> None:
        create(cluster)
        observed["network"].stop(hung)
        go(cluster, 0)

    with pytest.raises(ShardLost, match=rf"^rank {hung} \(\w+ \d\): no heartbeat"):
        simulate(schedule, Worker, servers=2, workers=2, tick=0.01, observed=observed)


@pytest.mark.parametrize("replicas", [0, 1, 2])
def test_all_ranks_with_the_journal_may_hang_at_once(replicas: int) -> None:
    """The next leader has no journal: it reports that, or starts the program again."""
    observed: dict[str, Any] = {}
    begun: list[int] = []

    def schedule(cluster: Cluster) -> int:
        begun.append(cluster.node.rank)
        if cluster.node.rank == 0:
            cluster.decide(lambda: 0)
            for rank in range(replicas + 2):
                observed["network"].stop(rank)
        create(cluster)
        return cluster.node.rank

    schedulers = replicas + 2
    heir = simulate(
        schedule,
        Worker,
        servers=replicas + 3,
        workers=1,
        schedulers=schedulers,
        replicas=replicas,
        observed=observed,
    )
    assert heir == schedulers and begun == [0, heir]


def test_a_dead_worker_is_reported_and_replaced_by_a_spare() -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> Any:
        create(cluster)
        go(cluster, 0)
        observed["network"].kill(3)
        with pytest.raises(WorkerLost):
            go(cluster, 3)
        assert cluster.node.view.workers == (2,)
        changed = cluster.regroup()
        assert (changed.before, changed.now) == ((2, 3), (2, 4))
        assert (changed.departed, changed.joined) == ([3], (4,))
        before = rows(cluster, "summed")
        go(cluster, 10)
        after = rows(cluster, "summed")
        assert {after[key] - before.get(key, 0) for key in after} == {3 * 2}
        return cluster.workers.ranks

    assert simulate(schedule, Worker, servers=1, workers=2, spares=1, observed=observed) == (2, 4)


def test_retries_end_when_no_worker_is_left() -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> None:
        create(cluster)
        for after, rank in ((30, 2), (60, 3), (90, 4)):
            observed["network"].plan(Fault("kill", rank, after_messages=observed["network"].posted + after))
        while True:
            with suppress(WorkerLost):
                cluster.regroup()
                go(cluster, 0)

    with pytest.raises(NoWorkerLeft, match="no worker is left, and no spare: resume with --resume latest"):
        simulate(schedule, Worker, servers=1, workers=2, spares=1, observed=observed)


def test_a_leading_spare_replaces_no_rank() -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> tuple[int, ...]:
        create(cluster)
        network: Network = observed["network"]
        if cluster.node.rank == 0:
            network.kill(0)
        go(cluster, 0)
        network.kill(2)
        with pytest.raises(WorkerLost):
            go(cluster, 3)
        assert cluster.regroup().joined == ()
        go(cluster, 10)
        return cluster.workers.ranks

    assert simulate(schedule, Worker, servers=1, workers=2, spares=1, observed=observed) == (3,)
    assert observed["view"].leader == 4


@pytest.mark.parametrize("sent", range(21))
def test_one_rank_succeeds_a_leader_that_has_sent_its_last_view_to_some(sent: int) -> None:
    """The spare is the heir, until the view in which it is a worker; some have that view, and some have not.

    Before that view the leader gives the journal to the next heir.
    """
    observed: dict[str, Any] = {}
    begun: list[int] = []

    def schedule(cluster: Cluster) -> tuple[int, ...]:
        begun.append(cluster.node.rank)
        create(cluster)
        go(cluster, 0)
        network: Network = observed["network"]
        if cluster.node.rank == 0:
            network.plan(Fault("kill", 0, after_messages=network.posted + sent))
        cluster.orders.joining = 1
        while True:
            try:
                cluster.regroup()
                go(cluster, 10 * len(begun))
                return cluster.workers.ranks
            except WorkerLost:
                continue

    workers = simulate(schedule, Worker, servers=2, workers=1, spares=1, replicas=1, observed=observed)
    assert begun in ([0, 1], [0, 4]) and observed["view"].leader == begun[1]
    assert workers in [(3,), (3, 4)] if begun[1] == 1 else workers == (3,)
    assert begun[1] == 1 or sent < 14


def test_a_joining_server_receives_shards_and_a_leaving_one_gives_them_up() -> None:
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> None:
        membership, node = cluster.membership, cluster.node
        create(cluster)
        go(cluster, 0)
        held = cluster.hosts.ranks
        joined = membership.join_server()
        until(cluster, lambda: joined in node.view.ring.servers and whole(cluster))
        assert set(cluster.hosts.ranks) == {*held, joined}
        go(cluster, 3)
        membership.leave_server(1)
        until(cluster, lambda: 1 not in node.view.ring.servers and whole(cluster))
        assert node.view.roles[1] is Role.SPARE and 1 not in cluster.hosts.ranks
        go(cluster, 6)
        with pytest.raises(InputError, match=r"rank 1 is not a server; servers are \d, \d"):
            membership.leave_server(1)
        assert membership.join_server() == 1, "it may come back"
        until(cluster, lambda: 1 in node.view.ring.servers and whole(cluster))
        with pytest.raises(InputError, match=r"no spare rank is left.*layout\.spares"):
            membership.join_server()
        check(cluster, 9, 2)

    simulate(schedule, Worker, servers=2, workers=2, spares=1, replicas=1, observed=observed)
    assert observed["view"].losses == ()


def test_the_last_server_cannot_leave_even_if_both_are_asked_at_once() -> None:
    def schedule(cluster: Cluster) -> None:
        create(cluster)
        go(cluster, 0)
        for rank in (1, 2):
            cluster.membership.leave_server(rank)
        until(cluster, lambda: len(cluster.node.view.servers) == 1)
        with pytest.raises(InputError, match="rank 2 is the last server: it cannot leave"):
            cluster.membership.leave_server(2)
        check(cluster, 3, 1)

    simulate(schedule, Worker, servers=2, workers=1)


@pytest.mark.parametrize("after", range(0, 120, 12))
@pytest.mark.parametrize("dead", [1, 4])
def test_a_death_while_a_server_joins(dead: int, after: int) -> None:
    """The joining server (4), or one that sends it a copy (1), dies after so many more messages."""
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> None:
        create(cluster)
        go(cluster, 0)
        assert cluster.membership.join_server() == 4
        network: Network = observed["network"]
        network.plan(Fault("kill", dead, after_messages=network.posted + after))
        go(cluster, 3)
        until(cluster, lambda: bool(cluster.node.view.losses) and whole(cluster))
        go(cluster, 6)
        check(cluster, 9, 1)

    simulate(schedule, Worker, servers=2, workers=1, spares=1, replicas=1, observed=observed)
    assert set(observed["view"].ring.servers) == {1, 2, 4} - {dead}


# Random faults.


@call("test_membership span", reads=True)
def span(segment: Any, args: dict[str, Any]) -> dict[str, Any]:
    """Return how many rows a shard has, and the least and the largest of their values."""
    _, values = segment.export()
    return {"rows": len(values), "least": int(values.min(initial=10**6)), "most": int(values.max(initial=0))}


def spans(cluster: Cluster) -> list[tuple[int, int]]:
    """Read of each shard that has keys what they all have: told again to who takes over, unlike an export."""
    found = cluster.servers.call("test_membership span", vector=cluster.vectors["summed"])
    assert all(each["least"] == each["most"] for each in found if each["rows"])
    return [(each["rows"], each["most"]) for each in found]


def campaign(cluster: Cluster, total: int) -> int:
    """Push until so many rounds are done, and check that each is there once; return how often a worker was lost."""
    lost = 0
    for name, aggregate in (("summed", True), ("plain", False)):
        try:
            cluster.create_vector(VectorSpec(name, "int64", 1, EXTENT, aggregate=aggregate))
        except WorkerLost:
            lost += 1
            cluster.regroup()
    done = 0
    while done < total:
        before = spans(cluster)
        try:
            go(cluster, done + 100 * lost)
        except WorkerLost:
            lost += 1
            cluster.regroup()
            continue
        more = 3 * len(cluster.workers)
        for (_, was), (count, now) in zip(before, spans(cluster), strict=True):
            assert now == was + more or count == 0
        done += 3
    return lost


def one_run(seed: int, kind: str, hosts: int = 1) -> None:
    """Inject faults drawn from a seed; each push must be applied once, and copies must be on two hosts."""
    rng = random.Random(f"{seed} {kind}")
    copies = rng.randint(1, 2)
    servers, workers = rng.randint(copies + 1, 4), rng.randint(1 + (kind == "one of each"), 3)
    spares, schedulers = rng.randint(int(kind in ("worker", "one of each")), 2), rng.randint(1, 2)
    if kind == "one of each":
        schedulers = 2  # the rank that has the journal does not die with the leader
    first = {"scheduler": 0, "server": schedulers, "worker": schedulers + servers}
    count = {"scheduler": 1, "server": servers, "worker": workers}
    faults = []
    for each in count if kind == "one of each" else (kind,):
        moment, act = rng.randrange(1, 400), rng.choice(["kill", "kill", "stop"])
        victims = rng.sample(range(count[each]), min(count[each], copies if kind == "server" else 1))
        faults += [Fault(act, first[each] + victim, after_messages=moment) for victim in victims]
    delays = rng.choice(
        [
            no_delay,
            random_delays(seed, delay=0.002),
            random_delays(seed, delay=0.002, drop=0.05, duplicate=0.05),
        ]
    )
    arrives = random_arrivals(seed, 0.5)
    observed: dict[str, Any] = {}

    def schedule(cluster: Cluster) -> tuple[int, dict[int, int], dict[int, int]]:
        return campaign(cluster, 9), rows(cluster, "summed"), rows(cluster, "plain")

    lost, summed, plain = simulate(
        schedule, Worker, servers=servers, workers=workers, spares=spares, schedulers=schedulers,
        replicas=copies, seed=seed, delays=delays, faults=faults, arrives=arrives, observed=observed, horizon=30.0,
        hosts=[f"n{rank % hosts}" for rank in range(schedulers + servers + workers + spares)],
    )  # fmt: skip
    ring = observed["view"].ring
    if whole(observed["cluster"]) and len({ring.host(rank) for rank in ring.servers}) > 1:
        assert all(len(set(map(ring.host, chain.members))) > 1 for chain in observed["view"].chains)
    assert len(summed) == len(KEYS)
    assert {loss.cause for loss in observed["view"].losses} <= {"died", "hung"}
    own = sum(count for key, count in plain.items() if key >= 500)
    common = sum(count for key, count in plain.items() if key < 20)
    if not lost:
        assert set(summed.values()) == {9 * workers}
        assert own == common == 9 * workers
        assert all(count == 1 for key, count in plain.items() if key >= 500)
    else:
        assert kind in ("worker", "one of each") and lost == 1
        # Any part of the interrupted call may have been applied, but nothing twice.
        assert min(summed.values()) >= 9 * (workers - 1) and max(summed.values()) <= 12 * workers
        assert 9 * (workers - 1) <= own <= 12 * workers and 9 * (workers - 1) <= common <= 12 * workers


@pytest.mark.drawn(3)
@pytest.mark.parametrize("kind", ["server", "scheduler", "worker", "one of each"])
@pytest.mark.parametrize("seed", range(5))
def test_every_push_is_applied_exactly_once_whichever_rank_dies(seed: int, kind: str) -> None:
    one_run(seed, kind)


@pytest.mark.parametrize("kind", ["server", "one of each"])
@pytest.mark.parametrize("seed", range(100, 103))
def test_the_same_with_ranks_on_two_or_three_hosts(seed: int, kind: str) -> None:
    one_run(seed, kind, 2 + seed % 2)

"""The server: what it registers, the requests that it takes, calls to it as a whole, snapshots, and new views."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import refusing
from simulated import simulate

from mpips import Cluster, Context
from mpips.calls import BuiltInCall
from mpips.checkpoint.background_writer import CheckpointWriter
from mpips.checkpoint.checkpoint import begin, commit
from mpips.checkpoint.loading import load_range
from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.node import Node
from mpips.cluster.policy import Policy
from mpips.cluster.view import Chain, Loss, first_view, without
from mpips.errors import RemoteError
from mpips.ranges import KeyRange
from mpips.server.server import Server
from mpips.server.snapshot_file import SnapshotFile
from mpips.storage.updates import VectorSpec
from mpips.transport.in_memory import Network
from mpips.transport.key_cache import sign
from mpips.transport.message import Command, Kind, Message

LAYOUT = Layout.of(5, LayoutSpec(servers=2, workers=2))
SCHEDULER, SERVER, OTHER, WORKER, PARTNER = range(5)
SPEC = VectorSpec("v", extent=100)
SUMS = VectorSpec("sums", extent=100, aggregate=True)


class Rank:
    """The node of a server, without the others: messages are put in, and what it sends is kept."""

    def __init__(self, replicas: int = 0, writer: CheckpointWriter | None = None) -> None:
        self.view = first_view(LAYOUT, virtual_servers=2, replicas=replicas)
        van = Network(5).vans[SERVER]
        self.node = Node(van, LAYOUT, self.view, held=dict)
        self.before = self.registered
        self.server = Server(self.node, file=SnapshotFile(self.node, writer))
        self.sent: list[tuple[int, Message]] = []
        van.send = lambda dest, message: self.sent.append((dest, message))  # type: ignore[method-assign]
        self.arriving = False
        van.arriving = lambda source: self.arriving  # type: ignore[method-assign]
        for link in self.server.chains:
            assert link.shard is not None
            link.shard.create(1, SPEC)
            link.shard.create(2, SUMS)
        self._time = 0

    @property
    def registered(self) -> tuple[Any, ...]:
        node = self.node
        return dict(node.handlers), dict(node.controls), list(node.on_tick), list(node.on_view)

    @property
    def shard(self) -> int:
        """The first shard of which it is the primary."""
        return self.server.shards[0].number

    def take(self, message: Message) -> list[tuple[int, Message]]:
        """Let a message arrive; return what is sent then, by receiver."""
        self.sent.clear()
        message.epoch = self.node.view.epoch
        self.node.take(message)
        self.node.act()
        return list(self.sent)

    def push(self, shard: int, time: int, namespace: int = 1, sender: int = WORKER, **fields: Any) -> Message:
        """Make a push of ones for the first two keys of a shard."""
        request = Message(Kind.REQUEST, Command.PUSH, sender, origin=sender, shard=shard, time=time, **fields)
        begin, _ = self.node.view.ring.range(shard, SPEC.extent)
        request.namespace, request.keys = namespace, np.arange(begin, begin + 2, dtype=np.uint64)
        request.values = np.ones((2, 1))
        return request

    def call(self, name: str, **args: Any) -> list[tuple[Kind, Any]]:
        """Let a call of the scheduler to this rank arrive; return kind and metadata of what is answered then."""
        request = Message(Kind.REQUEST, Command.CALL, SCHEDULER, origin=SCHEDULER, time=self._time)
        request.meta = {"call": name, "args": args}
        self._time += 1
        return [(each.kind, each.meta) for _, each in self.take(request)]

    def adopt(self, chains: dict[int, Chain]) -> None:
        """Adopt a later view, with other chains of some shards."""
        view, epoch = self.node.view, self.node.view.epoch + 1
        changed = {number: chain._replace(since=epoch) for number, chain in chains.items()}
        all_chains = tuple(changed.get(number, chain) for number, chain in enumerate(view.chains))
        self.node.adopt(replace(view, epoch=epoch, chains=all_chains))


def kinds(sent: list[tuple[int, Message]]) -> list[tuple[int, Kind, int]]:
    return [(dest, each.kind, each.time) for dest, each in sent]


# The role.


def test_a_server_that_leaves_takes_back_its_calls_and_may_enter_again() -> None:
    rank = Rank()
    before = rank.registered
    assert before[0] == {}
    for _ in range(2):
        rank.server.enter()
        assert set(rank.node.handlers) == {Command.CALL} and rank.registered[1:] == before[1:]
        rank.server.leave()
        assert rank.registered == before


def test_a_server_registers_control_messages_a_tick_and_views_when_it_is_made() -> None:
    rank = Rank()
    _, controls, ticks, views = rank.registered
    assert set(controls) - set(rank.before[1]) == {
        Command.ANNOUNCE,
        Command.ASK_ACKNOWLEDGED,
        Command.ASK_ROUNDS,
        Command.COPY_CHUNK,
        Command.COPY_RECEIVED,
    }
    # One tick is that of the file.
    assert len(ticks) == len(rank.before[2]) + 2 and len(views) == len(rank.before[3]) + 1


def test_a_rank_serves_its_shards_in_any_role_and_calls_only_as_a_server() -> None:
    rank = Rank()
    assert rank.call("account") == []
    assert kinds(rank.take(rank.push(rank.shard, 0))) == [(WORKER, Kind.REPLY, 0)]
    rank.server.enter()
    rank.node.act()
    assert [each.kind for _, each in rank.sent[1:]] == [Kind.REPLY], "the call has waited"
    rank.server.leave()
    assert rank.call("account") == []
    assert kinds(rank.take(rank.push(rank.shard, 1))) == [(WORKER, Kind.REPLY, 1)]


def test_the_loop_idles_only_when_there_is_nothing_to_do_and_an_observer_may_wrap_that() -> None:
    rank = Rank()
    work, done = [True, True, False, True, False], []

    def poll() -> bool:
        done.append("poll")
        return work.pop(0)

    def idle() -> None:
        done.append("idle")

    def observed(function: Any) -> Any:
        return lambda: (done.append("observed"), function())

    rank.node.poll = poll  # type: ignore[method-assign]
    rank.node.van.idle = idle  # type: ignore[method-assign]
    rank.node.observers.idling = (observed,)
    rank.server.run(lambda: not work)
    assert done == ["poll", "poll", "poll", "observed", "idle", "poll", "poll", "observed", "idle"]


def change(rank: Rank, number: int) -> Message:
    """Return the first change of a shard, from its primary."""
    made = rank.push(number, 1)
    made.kind, made.sender, made.after = Kind.CHAIN, OTHER, ((WORKER, 0), (0, int(Command.PUSH)))
    return made


def copied_shard(rank: Rank) -> int:
    """Return a shard that the other server is the primary of."""
    return next(link.number for link in rank.server.chains if not link.primary)


def test_changes_of_other_primaries_are_idle_work() -> None:
    rank = Rank(replicas=1)
    number = copied_shard(rank)
    shard = rank.server.chains.links[number].shard
    assert shard is not None and not rank.node.idle_work()
    rank.take(change(rank, number))
    assert len(shard.vectors[1].segment) == 0
    assert rank.node.poll() and len(shard.vectors[1].segment) == 2
    assert not rank.node.poll()


def test_keys_that_are_on_their_way_are_waited_for_with_the_ticks() -> None:
    rank = Rank()
    request = rank.push(rank.shard, 0)
    assert request.keys is not None
    request.signature, request.keys = sign(request.keys), None
    rank.arriving = True
    assert rank.take(request) == []
    rank.arriving = False
    for tick in rank.node.on_tick:
        tick()
    assert kinds(rank.sent) == [(WORKER, Kind.SEND_KEYS, 0)]


# Requests to shards.


def test_a_request_to_a_shard_that_is_elsewhere_is_dropped() -> None:
    rank = Rank()
    elsewhere = next(n for n in range(len(rank.view.chains)) if n not in rank.server.chains.links)
    assert rank.take(rank.push(elsewhere, 0)) == []


def test_a_request_to_a_shard_whose_primary_is_another_is_dropped() -> None:
    rank = Rank(replicas=1)
    number = copied_shard(rank)
    assert rank.take(rank.push(number, 0)) == []
    probe = Message(Kind.PROBE, Command.CALL, WORKER, origin=WORKER, shard=number, after=((0, 0),))
    assert rank.take(probe) == []
    probe.shard = rank.shard
    assert [each.kind for _, each in rank.take(probe)] == [Kind.MISSING]


def test_a_request_for_an_unknown_vector_is_refused() -> None:
    rank = Rank()
    ((dest, failure),) = rank.take(rank.push(rank.shard, 0, namespace=9))
    assert (dest, failure.kind) == (WORKER, Kind.FAILURE)
    assert "no vector with namespace 9" in failure.meta["text"]


def test_the_specification_of_a_vector_is_that_of_its_shards_or_of_a_handle() -> None:
    rank = Rank()
    assert rank.node.spec_of(1) == SPEC and rank.node.spec_of(9) is None
    rank.node.specs[9] = SUMS
    assert rank.node.spec_of(9) == SUMS


def test_acknowledgements_that_a_caller_asks_for_are_sent_to_it() -> None:
    rank = Rank()
    pending = rank.server._acknowledgements
    pending.expect(WORKER, (rank.shard, 5))
    pending.add(WORKER, (rank.shard, 5))
    asks = Message(Kind.CONTROL, Command.ASK_ACKNOWLEDGED, WORKER, origin=WORKER, after=((rank.shard, 5),))
    ((dest, message),) = rank.take(asks)
    assert (dest, message.command, message.origin) == (WORKER, Command.ACKNOWLEDGED, WORKER)
    assert message.after == ((rank.shard, 5),)


# Rounds.


def test_the_workers_that_a_round_waits_for_are_named() -> None:
    rank = Rank()
    number = rank.shard
    assert rank.server.unfinished_rounds() == {}
    assert rank.take(rank.push(number, 0, namespace=2, round=4)) == []
    ((key, text),) = rank.server.unfinished_rounds().items()
    assert isinstance(key, tuple) and key[:2] == (number, 2)
    assert text == "round 4 of vector sums: no push from rank 4 (worker 1)"
    answered = rank.take(rank.push(number, 0, namespace=2, sender=PARTNER, round=4))
    assert sorted(dest for dest, _ in answered) == [WORKER, PARTNER]
    assert rank.server.unfinished_rounds() == {}


def test_the_applied_rounds_are_sent_to_the_rank_that_asks() -> None:
    rank = Rank()
    asks = Message(Kind.CONTROL, Command.ASK_ROUNDS, SCHEDULER)
    for sender in (WORKER, PARTNER):
        rank.take(rank.push(rank.shard, 0, namespace=2, sender=sender, round=4))
    ((dest, message),) = rank.take(asks)
    assert (dest, message.command) == (SCHEDULER, Command.ROUNDS)
    assert set(message.meta) == {"sums"} and message.meta["sums"].latest == 4


# Calls to the server as a whole.


def entered(**how: Any) -> Rank:
    rank = Rank(**how)
    rank.server.enter()
    return rank


def test_the_account_counts_the_keys_of_the_shards_that_it_is_the_primary_of() -> None:
    rank = entered(replicas=1)
    rank.take(rank.push(rank.shard, 0))
    rank.take(change(rank, copied_shard(rank)))
    assert rank.node.poll()
    assert sum(len(link.shard.vectors[1].segment) for link in rank.server.chains if link.shard) == 4
    ((kind, meta),) = rank.call(BuiltInCall.ACCOUNT)
    assert kind is Kind.REPLY and meta["keys"] == 2 and meta.keys() >= rank.node.account().keys()


def test_an_unknown_function_is_refused_and_the_server_stays_up() -> None:
    rank = entered()
    ((kind, meta),) = rank.call("no_such")
    assert kind is Kind.FAILURE and "a server has no function 'no_such'" in meta["text"]
    assert [kind for kind, _ in rank.call(BuiltInCall.ACCOUNT)] == [Kind.REPLY]


class Later:
    """A writer that writes when it is told to."""

    def __init__(self) -> None:
        self.begun: list[Any] = []

    def start(self, write: Any, *arguments: Any) -> Future[Any]:
        done: Future[Any] = Future()
        self.begun.append(lambda: done.set_result(write(*arguments)))
        return done


def test_a_snapshot_has_the_rows_at_the_call_and_its_entry_is_sent_when_it_is_written(tmp_path: Path) -> None:
    writer = Later()
    rank = entered(replicas=1, writer=writer)
    shards = range(len(rank.view.chains))
    rank.adopt({number: Chain((SERVER,)) for number in shards})
    number, folder = rank.shard, begin(tmp_path, 1)
    rank.take(rank.push(number, 0))
    how = {"folder": str(folder), "shards": list(shards), "number": 3}
    assert rank.call(BuiltInCall.SNAPSHOT, **how) == [(Kind.REPLY, {})], "it is answered before it is written"
    rank.take(rank.push(number, 1))
    assert rank.call(BuiltInCall.WRITTEN) == []
    (write,) = writer.begun
    write()
    rank.sent.clear()
    for tick in rank.node.on_tick:
        tick()
    ((dest, entry),) = rank.sent
    assert dest == SCHEDULER and (entry.meta["kind"], entry.meta["number"]) == ("server", 3)
    commit(folder, [entry.meta], {"step": 1})
    rows = load_range(folder, "v", [KeyRange(0, SPEC.extent)])
    assert rows.values.tolist() == [[1.0], [1.0]]


def test_a_snapshot_of_a_shard_that_has_moved_away_is_refused(tmp_path: Path) -> None:
    rank = entered()
    number = rank.shard
    rank.adopt({number: Chain((OTHER,))})
    ((kind, meta),) = rank.call(BuiltInCall.SNAPSHOT, folder=str(tmp_path), shards=[number], number=0)
    assert kind is Kind.FAILURE and meta["lost"] and f"rank 1 no longer holds shard {number}" in meta["text"]


def test_a_replay_writes_no_snapshot(tmp_path: Path) -> None:
    class Replay(Policy):
        is_replay = True

    writer = Later()
    rank = entered(writer=writer)
    rank.node.policy = Replay()
    rank.call(BuiltInCall.SNAPSHOT, folder=str(tmp_path), shards=[rank.shard], number=0)
    rank.call(BuiltInCall.WRITTEN)
    for tick in rank.node.on_tick:
        tick()
    assert writer.begun == [] and [each.meta for _, each in rank.sent] == [{}]


# New views.


def test_the_shards_are_those_of_which_it_is_the_primary_in_key_order() -> None:
    rank = Rank(replicas=1)
    own = [number for number, chain in enumerate(rank.view.chains) if chain.members[0] == SERVER]
    copies = [number for number in rank.server.chains.links if number not in own]
    assert len(own) == 2 and copies
    links = rank.server.chains.links
    rank.server.chains.links = dict(reversed(links.items()))
    assert [shard.number for shard in rank.server.shards] == own
    rank.adopt({number: Chain((SERVER,)) for number in copies})
    assert [shard.number for shard in rank.server.shards] == sorted([*own, *copies])


def test_a_shard_that_moves_away_is_no_longer_served_and_its_key_lists_are_forgotten() -> None:
    rank = Rank()
    number = rank.shard
    request = rank.push(number, 0)
    assert request.keys is not None
    signature = request.signature = sign(request.keys)
    rank.take(request)
    assert rank.server.lists.find(number, 1, signature) is not None
    rank.adopt({number: Chain((OTHER,))})
    assert rank.server.lists.find(number, 1, signature) is None
    assert number not in rank.server.chains.links and rank.take(rank.push(number, 1)) == []


def test_changes_that_are_queued_are_applied_before_a_new_view() -> None:
    rank = Rank(replicas=1)
    number = copied_shard(rank)
    rank.take(change(rank, number))
    rank.adopt({number: Chain((SERVER,))})
    shard = rank.server.chains.links[number].shard
    assert shard is not None and len(shard.vectors[1].segment) == 2


def test_rounds_with_a_lost_worker_are_dropped_in_its_view() -> None:
    rank = Rank()
    rank.take(rank.push(rank.shard, 0, namespace=2, round=4))
    rank.node.adopt(without(replace(rank.node.view, epoch=1), [Loss(PARTNER, "worker", "died", 0.0)]))
    assert rank.server.unfinished_rounds() == {}
    answered = rank.take(rank.push(rank.shard, 1, namespace=2, round=4))
    assert kinds(answered) == [(WORKER, Kind.REPLY, 1)], "the other worker is not waited for"


def test_acknowledgements_of_a_shard_that_moves_away_are_dropped() -> None:
    rank = Rank()
    stays, moves = (shard.number for shard in rank.server.shards)
    pending = rank.server._acknowledgements
    for push in ((stays, 5), (moves, 6)):
        pending.expect(WORKER, push)
    pending.ask(WORKER, [(stays, 5), (moves, 6)])
    pending.add(WORKER, (stays, 5))
    rank.sent.clear()
    rank.adopt({moves: Chain((OTHER,))})
    acknowledged = [each for _, each in rank.sent if each.command is Command.ACKNOWLEDGED]
    assert [each.after for each in acknowledged] == [((stays, 5),)], "the other one is not waited for"


# A whole cluster.


@pytest.mark.parametrize("aggregate", [False, True])
def test_an_update_that_raises_reaches_the_pusher_and_the_server_stays_up(aggregate: bool) -> None:
    def schedule(cluster: Cluster) -> None:
        spec = VectorSpec("v", "float64", 1, 100, refusing.NAME, aggregate=aggregate)
        cluster.create_vector(spec)
        with pytest.raises(
            RemoteError, match=r"rank 1 \(server 0 on .*\): ValueError: a negative row"
        ) as caught:
            cluster.workers.call("push", {"value": -1.0, "round": 0})
        assert "refuses" in caught.value.trace and not caught.value.is_input
        cluster.workers.call("push", {"value": 2.0, "round": 1})
        (total,) = cluster.node.wait(cluster.vectors["v"].pull(np.array([7], np.uint64)))
        assert total == 4.0

    class Pusher:
        def __init__(self, context: Context) -> None:
            self.context = context

        def push(self, value: float, round: int) -> None:
            vector = self.context.vectors["v"]
            self.context.node.wait(vector.push(np.array([7], np.uint64), np.array([value]), round=round))

    simulate(schedule, Pusher, servers=1, workers=2)

"""The membership protocol of all ranks in simulated time, message by message: somebody is elected, whoever stalls."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from mpips.cluster.departure import Fenced
from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.view import View, first_view
from mpips.membership.membership import Membership
from mpips.membership.specification import of_behaviour
from mpips.transport.message import Command, Kind, Message

STEP, BEAT, PATIENCE = 0.005, 0.1, 1.0
SPREAD = [f"h{rank}" for rank in range(7)]


class Detector:
    """Heartbeats as `mpips.membership.heartbeat`'s: they echo the last one received, so they confirm it."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks = ranks
        self.targets: Sequence[int] = ()
        self.seldom: Sequence[int] = ()
        self.follows = -1
        self.muted = self.hears_muted = False
        # By rank: when it was heard, in this rank's running time; when its last heartbeat was sent; and echoes.
        self.heard: dict[int, float] = {}
        self.dated: dict[int, float] = {}
        self.echoed: dict[int, float] = {}
        self.confirmed: dict[int, float] = {}
        self.running = 0.0

    def silent(self, ranks: Iterable[int], patience: float) -> list[int]:
        return [rank for rank in ranks if rank in self.heard and self.running - self.heard[rank] >= patience]

    def deaf(self, ranks: Iterable[int], patience: float) -> list[int]:
        return [
            rank for rank in ranks if self.ranks.time - self.echoed.get(rank, self.ranks.time) >= patience
        ]

    def unconfirmed(self, ranks: Iterable[int], patience: float) -> list[int]:
        now = self.ranks.time
        since = {rank: self.confirmed.get(rank, self.echoed.get(rank, now)) for rank in ranks}
        return [rank for rank in since if now - since[rank] >= patience]

    def receive(self, sender: int, other: Detector, me: int) -> None:
        if not other.muted or self.hears_muted:
            self.heard[sender] = self.running
        if me in other.dated:
            self.echoed[sender] = other.dated[me]
            if other.follows == me:
                self.confirmed[sender] = other.dated[me]
        self.dated[sender] = self.ranks.time


class Leases:
    """Leases in memory; `is_reached` says whether this rank reaches them, and `answers` whether it gets answers.

    One that is taken while there are no answers is taken when there are.
    """

    def __init__(
        self, taken: dict[int, str], is_reached: Callable[[], bool], answers: Callable[[], bool]
    ) -> None:
        self.taken, self.is_reached, self.answers = taken, is_reached, answers
        self.late: tuple[int, str] | None = None

    @property
    def taking(self) -> bool:
        if self.late is not None and self.answers():
            self.taken.setdefault(*self.late)
            self.late = None
        return self.late is not None

    def take(self, number: int, view: str) -> str | None:
        if self.taking or not self.is_reached():
            return None
        if not self.answers():
            self.late = number, view
            return None
        return self.taken.setdefault(number, view)

    def holder(self, number: int) -> str | None:
        return None if self.taking or not self.is_reached() else self.taken.get(number, "")


class Ranks:
    """All ranks of a layout; those in `stalled` do not run.

    Messages for which `arrives(sender, rank, message)` is False are lost, and heartbeats by `hears(sender, rank)`.
    """

    def __init__(self, spec: LayoutSpec, hosts: Sequence[str]) -> None:
        self.layout = Layout.of(spec.size(), spec)
        view = first_view(self.layout, replicas=1, hosts=hosts)
        self.time, self.stalled, self.left = 0.0, set[int](), set[int]()
        # The ranks that cannot reach the leases, and those that get no answers from them.
        self.unreached, self.unanswered = set[int](), set[int]()
        self.arrives: Callable[[int, int, Message], bool] = lambda sender, rank, message: True
        self.hears: Callable[[int, int], bool] = lambda sender, rank: True
        self.queue: list[tuple[int, int, Message]] = []
        self.taken: dict[int, str] = {}
        self.published = [view]
        size = range(spec.size())
        self.nodes = [self._node(rank, view) for rank in size]
        self.detectors = [Detector(self) for _ in size]
        self.members = [
            Membership(
                self.nodes[rank],
                1,
                self.detectors[rank],
                PATIENCE,
                leases=Leases(
                    self.taken,
                    lambda rank=rank: rank not in self.unreached,  # type: ignore[misc]
                    lambda rank=rank: rank not in self.unanswered,  # type: ignore[misc]
                ),
            )
            for rank in size
        ]
        for member in self.members:
            member.on_publish = self.published.append

    def _node(self, rank: int, view: View) -> Any:
        node = SimpleNamespace(rank=rank, view=view, layout=self.layout, frozen=False, who=f"rank {rank}")
        node.van = SimpleNamespace(
            survives=True, now=lambda: self.time, wall=lambda: self.time, failed=lambda: sorted(self.left)
        )
        node.policy = SimpleNamespace(is_replay=False)
        node.departure = SimpleNamespace(record_lost=lambda rank: None)
        node.role = view.roles[rank]

        def register(registration: Any) -> None:
            node.controls, (node.tick,) = registration.controls, registration.ticks

        def control(to: int, command: Command, meta: dict[str, Any]) -> None:
            message = Message(Kind.CONTROL, command, meta=json.loads(json.dumps(meta)))
            message.sender = rank
            self.queue.append((rank, to, message))

        def adopt(view: View) -> None:
            node.view, node.role = view, view.roles[rank]
            if node.role is None:
                raise Fenced

        node.register, node.control, node.adopt = register, control, adopt
        node.freeze = lambda: setattr(node, "frozen", True)
        node.thaw = lambda: setattr(node, "frozen", False)
        return node

    def run(self, seconds: float = STEP) -> None:
        """Run all ranks that are not stalled; each receives what was sent to it in the last step."""
        for _ in range(max(round(seconds / STEP), 1)):
            self.time += STEP
            running = [
                rank for rank in range(len(self.nodes)) if rank not in self.stalled and rank not in self.left
            ]
            for rank in running:
                self.detectors[rank].running += STEP
            for rank in running:
                # Not all at the same time.
                if (round(self.time / STEP) + 3 * rank) % round(BEAT / STEP) == 0:
                    detector = self.detectors[rank]
                    for to in {*detector.targets, *detector.seldom} & set(running):
                        if self.hears(rank, to):
                            self.detectors[to].receive(rank, detector, to)
            sent, self.queue = self.queue, []
            for sender, to, message in sent:
                if to in self.stalled:
                    self.queue.append((sender, to, message))
                elif to in running and self.arrives(sender, to, message):
                    self._take(to, partial(self._receive, to, message))
            for rank in running:
                if rank not in self.left:
                    self._take(rank, self.nodes[rank].tick)

    @contextmanager
    def deaf(self, rank: int) -> Iterator[list[tuple[int, int, Message]]]:
        """Let a rank receive nothing meanwhile; yield what is sent to it, which arrives afterwards."""
        kept: list[tuple[int, int, Message]] = []

        def arrives(sender: int, to: int, message: Message) -> bool:
            if to == rank:
                kept.append((sender, to, message))
            return to != rank

        self.hears, self.arrives = lambda sender, to: to != rank, arrives
        yield kept
        self.hears, self.arrives = lambda sender, to: True, lambda sender, to, message: True
        self.queue += kept

    def _receive(self, rank: int, message: Message) -> None:
        node = self.nodes[rank]
        if node.view.roles[message.sender] is not None and message.command in node.controls:
            node.controls[message.command](message)

    def _take(self, rank: int, act: Callable[[], None]) -> None:
        try:
            act()
        except Fenced:
            self.left.add(rank)

    def stand(self, rank: int) -> None:
        """Run until a rank proposes."""
        while self.members[rank]._consensus.proposal is None:
            assert self.time < 10
            self.run()

    def leaders(self) -> list[int]:
        """Return the ranks that lead and are not frozen."""
        return [
            rank
            for rank, member in enumerate(self.members)
            if rank not in self.left | self.stalled and member.leading and not self.nodes[rank].frozen
        ]

    def check(self) -> None:
        """Check that one rank leads all others, and that the views that were published are a behaviour."""
        (leader,) = self.leaders()
        others = [rank for rank in range(len(self.nodes)) if rank not in self.left | self.stalled]
        assert {self.nodes[rank].view.leader for rank in others} == {leader}
        assert not list(of_behaviour(self.published, 1))


@pytest.fixture
def five() -> Ranks:
    """Five ranks that vote, each on a host of its own; 0 leads, and 6 is its first successor."""
    ranks = Ranks(LayoutSpec(servers=3, workers=2, spares=1), SPREAD)
    assert ranks.nodes[0].view.succession() == [0, 6, 1, 2, 3]
    ranks.run(2.0)
    assert ranks.leaders() == [0]
    return ranks


def test_the_next_one_stands_where_the_first_successor_does_not(
    five: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(five.members[6]._succession, "stand", lambda every: None)
    five.stalled = {0}
    five.run(10.0)
    five.check()
    assert five.leaders() == [1]


def test_a_view_that_was_agreed_on_without_a_rank_is_published_though_that_rank_is_heard_again(
    five: Ranks,
) -> None:
    five.stalled = {0, 6}
    five.stand(1)
    # The leader hangs for good; another voter stalls, so that the proposal lacks one acceptance when 6 is back.
    five.stalled = {0, 2}
    five.run(0.5)
    five.stalled = {0}
    five.run(2.0)
    five.check()
    assert five.leaders() == [1] and 6 in five.left


@pytest.fixture
def two_hosts() -> Ranks:
    """Two hosts with two votes each: 0, the leader, and 1; 2, the first successor, and 3."""
    ranks = Ranks(LayoutSpec(servers=3, workers=2), ["a", "a", "b", "b", "a", "b"])
    ranks.run(2.0)
    return ranks


def test_a_leader_that_has_a_lease_and_a_proposed_view_of_half_of_the_votes_do_not_wait_for_each_other(
    two_hosts: Ranks,
) -> None:
    ranks = two_hosts
    ranks.stalled, ranks.unreached = {0}, {2, 3}
    late = ranks.time + 2.2
    ranks.arrives = lambda sender, rank, message: (
        message.command is not Command.PROPOSE or (sender, rank) != (2, 1) or ranks.time > late
    )
    ranks.stand(2)
    ranks.stalled = set()
    ranks.run(3.0)
    ranks.unreached = set()
    ranks.run(20.0)
    ranks.check()


def test_a_leader_that_is_cut_off_at_its_election_is_frozen_before_another_is_elected(five: Ranks) -> None:
    five.stalled = {0}
    five.stand(6)
    while len(five.published) < 2:
        five.run()
    five.arrives = lambda sender, rank, message: sender != 6
    five.hears = lambda sender, rank: 6 not in (sender, rank)
    for _ in range(1000):
        five.run()
        assert len(five.leaders()) <= 1
    assert five.leaders() and five.leaders() != [6]


def test_a_leader_that_hears_nobody_for_a_moment_excludes_nobody(five: Ranks) -> None:
    with five.deaf(0):
        five.run(1.5)
        assert five.leaders() == [] and five.nodes[0].frozen
    five.run(5.0)
    five.check()
    assert five.leaders() == [0] and not five.left and not any(view.losses for view in five.published)


def test_a_candidate_that_hears_nobody_for_a_moment_excludes_nobody_but_the_leader(five: Ranks) -> None:
    five.left = {0}
    with five.deaf(6) as kept:
        five.run(1.2)
        assert not five.leaders() and kept
    five.run(5.0)
    five.check()
    assert five.left == {0} and [loss.rank for view in five.published for loss in view.losses] == [0]


def test_a_candidate_that_hears_nobody_after_it_has_proposed_excludes_nobody_as_the_leader(
    five: Ranks,
) -> None:
    five.left = {0}
    five.stand(6)
    with five.deaf(6) as kept:
        five.run(1.2)
        assert not five.leaders() and kept
    five.run(5.0)
    five.check()
    assert five.left == {0} and [loss.rank for loss in five.published[-1].losses] == [0]


def test_ranks_that_are_heard_again_vote_for_a_view_that_excludes_them_if_others_are_too_few() -> None:
    ranks = Ranks(LayoutSpec(servers=3, workers=2, spares=3), [f"h{rank}" for rank in range(9)])
    ranks.run(2.0)
    ranks.stalled = {6, 7, 8}
    ranks.stand(0)
    # Four of seven votes are needed, of which the leader and two others are left.
    ranks.stalled = {3}
    ranks.run(5.0)
    ranks.check()
    assert ranks.leaders() == [0] and ranks.left == {6, 7, 8}
    assert {loss.rank for loss in ranks.published[-1].losses} == {3, 6, 7, 8}


def test_a_majority_continues_though_its_leases_do_not_answer(five: Ranks) -> None:
    five.unanswered, five.stalled = set(range(7)), {2}
    five.run(5.0)
    (view,) = {five.nodes[rank].view for rank in (0, 1, 3, 6)}
    assert five.leaders() == [0] and view.roles[2] is None and view.lease == 0
    five.unanswered, five.stalled = set(), {2, 0}
    five.run(10.0)
    five.check()
    assert five.leaders() == [6]


def test_a_lease_that_is_taken_late_decides_on_the_view_that_it_was_taken_for(two_hosts: Ranks) -> None:
    ranks = two_hosts
    ranks.stalled, ranks.unanswered = {0}, {2}
    while not ranks.members[2]._quorum.leases.taking:
        ranks.run()
        assert ranks.time < 20
    # The others elect another one meanwhile, if they can.
    ranks.stalled, ranks.unanswered = set(), {2}
    ranks.run(3.0)
    ranks.unanswered = set()
    ranks.run(20.0)
    ranks.check()


def test_a_last_view_that_arrives_after_the_answers_to_a_candidate_does_not_stop_its_election(
    five: Ranks,
) -> None:
    kept: list[tuple[int, int, Message]] = []

    def late(sender: int, rank: int, message: Message) -> bool:
        is_kept = sender == 0 and message.command is Command.VIEW
        if is_kept and rank != 6:
            kept.append((sender, rank, message))
        return not is_kept

    five.arrives = late
    five.left.add(4)
    while len(five.published) < 2:
        five.run()
    five.left.add(0)
    five.stand(6)
    five.queue = [*kept, *five.queue]
    five.arrives = lambda sender, rank, message: True
    five.run(10.0)
    five.check()
    assert five.leaders() == [6] and five.nodes[6].view.workers == (5,)


def test_a_candidate_that_is_told_of_an_earlier_view_keeps_a_view_of_another_that_has_taken_effect(
    five: Ranks,
) -> None:
    # Only rank 3 gets a view of the leader; it is cut off, and the leader hangs.
    five.arrives = lambda sender, rank, message: message.command is not Command.VIEW or rank == 3
    five.members[0].set_workers([4])
    five.run(0.05)
    assert [node.view.epoch for node in five.nodes] == [1, 0, 0, 1, 0, 0, 0]
    views: list[tuple[int, Message]] = []
    kept: list[tuple[int, int, Message]] = []
    may_propose = True

    def arrives(sender: int, rank: int, message: Message) -> bool:
        if 3 in (sender, rank):
            kept.append((sender, rank, message))
            return False
        if sender == 6 and message.command is Command.VIEW:
            views.append((rank, message))
            return False
        return may_propose or message.command is not Command.PROPOSE

    five.arrives, five.hears = arrives, lambda sender, rank: 3 not in (sender, rank)
    five.stalled = {0}
    while len(five.published) < 3:
        five.run()
    assert five.published[-1].leader == 6 and five.published[-1].roles[3] is None
    # The one that is elected dies as its view arrives; the next one has asked before it.
    five.left, may_propose = {0, 6}, False
    five.stand(1)
    proposal = five.members[1]._consensus.proposal
    for rank, message in views:
        if rank in (2, 4, 5):
            five._receive(rank, message)
    # Rank 3 is heard again, before the others accept.
    five.arrives = lambda sender, rank, message: may_propose or message.command is not Command.PROPOSE
    five.hears = lambda sender, rank: True
    five.queue += [each for each in kept if each[0] not in five.left]
    while five.members[1]._consensus.proposal is proposal:
        five.run()
    may_propose = True
    five.run(3.0)
    five.check()
    assert five.leaders() == [1] and 3 in five.left


@pytest.mark.parametrize("later", [0.0, 0.05, 0.1])
def test_a_leader_that_was_deaf_is_elected_again_or_lost_and_nobody_else_is(
    five: Ranks, later: float
) -> None:
    with five.deaf(0):
        while not five.members[6]._succession.standing:
            five.run()
        five.run(later)
    five.run(5.0)
    five.check()
    assert len(five.left) <= 1 and five.left <= {0, 6}


def test_a_leader_that_cannot_publish_does_not_change_the_workers_later(five: Ranks) -> None:
    five.hears = lambda sender, rank: False
    five.run(1.5)
    leader, before = five.members[0], five.nodes[0].view.workers
    assert five.nodes[0].frozen and not leader.set_workers([4])
    five.hears = lambda sender, rank: True
    five.run(0.5)
    assert five.nodes[0].view.workers == before and five.leaders() == [0]
    assert leader.set_workers([4]) and five.nodes[0].view.workers == (4,)

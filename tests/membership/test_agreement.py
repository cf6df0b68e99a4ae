"""Agreement: of any two sides, one at most has a majority; views that take effect follow from each other."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.cluster.layout import Layout, LayoutSpec
from mpips.cluster.view import GENERATION, View, first_view
from mpips.membership.agreement import (
    RENEWED,
    Ancestor,
    Ballot,
    Electorate,
    Identity,
    Known,
    Outcome,
    Proposed,
    base_of,
    is_outbid,
    lease_for,
    least,
)
from mpips.membership.succession import is_passed

SPEC = LayoutSpec(servers=3, workers=2, spares=1)
LAYOUT = Layout.of(SPEC.size(), SPEC)
FIRST = first_view(LAYOUT, replicas=1)
VOTERS = (0, 1, 2, 3, 6)


def test_workers_have_no_votes_and_each_host_has_as_many_as_any_other() -> None:
    assert Electorate.of(LAYOUT).votes == (1, 1, 1, 1, 0, 0, 1)
    # Voters 0, 1, 3, 6 are on a, and 2 on b.
    assert Electorate.of(LAYOUT, ["a", "a", "b", "a", "a", "b", "a"]).votes == (1, 1, 4, 1, 0, 0, 1)


@pytest.mark.parametrize(
    ("agreed", "living", "outcome"),
    [
        ([0, 1], [0, 1, 2], Outcome.MAJORITY),
        ([0], [0, 1], Outcome.HALF),
        ([0], [0, 1, 2], Outcome.MINORITY),
        ([0], [0], Outcome.MAJORITY),
        ([0, 3], [0, 1], Outcome.HALF),
        ([4, 5], [0, 4, 5], Outcome.MINORITY),
    ],
)
def test_the_votes_of_the_living_decide(agreed: list[int], living: list[int], outcome: Outcome) -> None:
    assert Electorate.of(LAYOUT).outcome(agreed, living) is outcome


@given(
    st.lists(st.sampled_from("abc"), min_size=7, max_size=7), st.sets(st.sampled_from(range(7))), st.data()
)
def test_two_sides_never_both_have_a_majority_whatever_deaths_each_knows_of(
    hosts: list[str], dead: set[int], data: st.DataObject
) -> None:
    electorate = Electorate.of(LAYOUT, hosts)
    alive = set(range(7)) - dead
    side = data.draw(st.sets(st.sampled_from(sorted(alive)))) if alive else set()
    # Each side knows of some deaths.
    known = [data.draw(st.sets(st.sampled_from(sorted(dead)))) if dead else set() for _ in range(2)]
    one, other = (
        electorate.outcome(part, set(range(7)) - knows)
        for part, knows in zip((side, alive - side), known, strict=True)
    )
    if any(electorate.votes[rank] for rank in alive):
        assert Outcome.MAJORITY not in (one, other) or Outcome.MINORITY in (one, other)


def view(epoch: int, leader: int = 0) -> View:
    return replace(FIRST, epoch=epoch, leader=leader)


def following(base: View, made: View, by_lease: bool = False) -> Proposed:
    """Return a proposed view that follows a published one."""
    return Proposed(made, (Ancestor.of(base),), by_lease)


def test_views_of_a_later_ballot_are_later() -> None:
    views = [
        view(5),
        view(GENERATION, 2),
        view(GENERATION + 3, 2),
        view(GENERATION + 1, 3),
        view(2 * GENERATION),
    ]
    assert sorted([*views[2:], *views[:2]], key=Identity.of) == views


def test_a_rank_promises_a_ballot_once_and_not_while_it_hears_its_leader() -> None:
    known = Known(view(5))
    ballot = known.next_ballot(2)
    assert ballot == (1, 2)
    assert known.promises(ballot, hears_leader=False)
    assert not known.promises(ballot, hears_leader=True), "its leader is alive"
    assert known.promises(known.next_ballot(0), hears_leader=True), "of its leader"
    assert not known.promises(Ballot(0, 2), hears_leader=False), "there is a leader in this generation"
    known = known._replace(promised=Ballot(1, 3))
    assert not known.promises(ballot, hears_leader=False), "it has promised a higher one"
    assert known.next_ballot(2) == (2, 2)
    known = Known(view(5), following(view(5), view(GENERATION, 3)), Ballot(1, 3))
    assert not known.promises(Ballot(1, 4), hears_leader=False), "it has accepted a view of this generation"
    assert known.promises(Ballot(2, 1), hears_leader=False)


def test_a_rank_accepts_what_follows_from_the_latest_that_it_knows() -> None:
    known = Known(view(5))
    assert known.accepts(following(view(5), view(6)), hears_leader=True), "of its leader"
    assert not known.accepts(following(view(4), view(6)), hears_leader=True), "it knows a later one"
    assert not known.accepts(following(view(5), view(5)), hears_leader=True), "it is none"
    candidate = following(view(5), view(GENERATION, 2))
    assert known.accepts(candidate, hears_leader=False)
    assert not known.accepts(candidate, hears_leader=True), "its leader is alive"
    known = known._replace(accepted=candidate, promised=Ballot(1, 2))
    assert known.latest == candidate
    rival = following(view(5), view(2 * GENERATION, 3))
    assert not known.accepts(rival, hears_leader=False), "its candidate does not know what was accepted here"
    after = Proposed(view(2 * GENERATION, 3), candidate.deciding(view(5)))
    assert [each.identity.generation for each in after.ancestors] == [0, 1]
    assert known.accepts(after, hears_leader=False)
    promised = known._replace(promised=Ballot(2, 3))
    assert promised.accepts(rival, hears_leader=False), "it was told to its candidate"
    assert not promised.accepts(following(view(5), view(GENERATION + 1, 2)), hears_leader=False), (
        "a lower ballot"
    )
    assert known._replace(view=view(2 * GENERATION)).latest.view.epoch == 2 * GENERATION


def test_known_views_and_promises_survive_a_message() -> None:
    known = Known(view(5), following(view(5), view(GENERATION, 3), True), Ballot(1, 3))
    assert Known.from_meta(json.loads(json.dumps(known.to_meta()))) == known


def test_a_proposal_needs_each_electorate_that_may_decide() -> None:
    electorate = Electorate.of(LAYOUT)
    smaller = replace(FIRST, epoch=1, roles=(FIRST.roles[0], FIRST.roles[1], None, None, *FIRST.roles[4:]))
    ancestors = following(FIRST, smaller).deciding(FIRST)
    assert electorate.outcome((0, 1), smaller.alive) is Outcome.MAJORITY
    assert electorate.outcome((0, 1), FIRST.alive) is Outcome.MINORITY
    assert least(electorate, (0, 1), ancestors, sorted) is Outcome.MINORITY
    assert least(electorate, (0, 1, 6), ancestors, sorted) is Outcome.MAJORITY


def test_a_candidate_follows_the_latest_view_that_it_is_told() -> None:
    accepted = following(FIRST, view(GENERATION, 1))
    ballot = Ballot(2, 6)
    known = {
        6: Known(FIRST, None, ballot),
        1: Known(FIRST, accepted, ballot),
        2: Known(FIRST, None, ballot),
        3: Known(FIRST, None, Ballot(1, 1)),
    }
    base, outcome = base_of(ballot, known, FIRST, Electorate.of(LAYOUT), sorted)
    assert base == accepted and outcome is Outcome.MAJORITY
    assert not is_outbid(ballot, known.values())
    assert is_outbid(Ballot(1, 6), known.values()), "rank 1 has accepted a view of this generation"
    assert is_outbid(ballot, [Known(FIRST, None, Ballot(3, 1))])


def test_a_view_of_half_of_the_votes_does_not_replace_an_accepted_one_that_it_does_not_follow() -> None:
    accepted = Proposed(FIRST).followed_by(view(GENERATION, 1), FIRST, True)
    epoch = 2 * GENERATION
    known = Known(FIRST, accepted, Ballot(2, 2))
    rival = Proposed(FIRST).followed_by(view(epoch, 2), FIRST, True)
    assert not known.accepts(rival, False), "the other half may have the lease for the accepted one"
    assert not known.accepts(rival.followed_by(view(epoch + 1, 2), FIRST, True), False)
    assert known.accepts(Proposed(FIRST).followed_by(view(epoch, 2), FIRST, False), False)
    assert known.accepts(accepted.followed_by(view(epoch, 2), FIRST, True), False)
    settled = view(GENERATION - 1, 0)
    void = Proposed(FIRST).followed_by(view(GENERATION, 1), FIRST, True)
    assert void.is_void(replace(settled, agreed=settled.epoch))
    later = Known(replace(settled, agreed=settled.epoch), void, Ballot(2, 2))
    assert later.accepts(Proposed(later.view).followed_by(view(epoch, 2), later.view, True), False)


def lease_of(
    proposed: Proposed, take: Callable[[int, Identity], Identity | None]
) -> tuple[int, Identity | None]:
    return lease_for(proposed.identity, proposed.view.lease, proposed.has_used, take)


def test_the_lease_after_those_of_the_ancestors_decides() -> None:
    taken: dict[int, Identity] = {}
    lower = Proposed(FIRST).followed_by(view(GENERATION, 1), FIRST, False)
    after = lower.followed_by(view(2 * GENERATION, 2), FIRST, False)
    assert lease_of(lower, taken.setdefault) == (1, lower.identity)
    assert lease_of(after, taken.setdefault) == (2, after.identity), "the first one has decided its ancestor"
    settled = replace(after.view, lease=2)
    later = Proposed(settled).followed_by(view(2 * GENERATION + 1, 2), settled, False)
    assert lease_of(later, taken.setdefault) == (3, later.identity)
    rival = Proposed(FIRST).followed_by(view(3 * GENERATION, 3), FIRST, True)
    assert lease_of(rival, taken.setdefault) == (1, lower.identity), "it does not follow from that"
    assert rival.is_void(lower.view) and not rival.is_void(FIRST) and not later.is_void(lower.view)
    free = Proposed(FIRST).followed_by(view(2 * GENERATION, 4), FIRST, False)
    assert not free.followed_by(view(3 * GENERATION, 3), FIRST, True).is_void(lower.view), (
        "a majority may have agreed"
    )
    assert lease_of(rival, lambda number, view: None) == (1, None)
    # The leader of the view that they all follow has taken it to continue at half of the votes.
    renewed = Identity(0, 0, RENEWED)
    assert lease_of(after, {1: renewed}.setdefault) == (1, renewed)
    own = Proposed(FIRST).followed_by(view(1, 0), FIRST, False)
    assert lease_of(own, {1: renewed}.setdefault) == (1, own.identity)


class Model:
    """Ranks that ask, promise, propose, accept and publish in any order, lose any message, and believe what they like.

    `random` decides. Each rank's state is what it knows, and as a candidate its ballot and the answers to it, and its
    proposal with its acceptors. Leases can be reached or not.
    """

    def __init__(self, random: Random, hosts: int) -> None:
        self.random = random
        self.electorate = Electorate.of(LAYOUT, [f"h{rank % hosts}" for rank in range(7)])
        self.known = dict.fromkeys(VOTERS, Known(FIRST))
        self.ballots: dict[int, Ballot] = {}
        self.answers: dict[int, dict[int, Known]] = {rank: {} for rank in VOTERS}
        self.proposals: dict[int, Proposed] = {}
        self.acceptors: dict[Identity, set[int]] = {}
        self.proposed: list[Proposed] = []
        self.published: list[View] = []
        self.agreed: list[View] = []
        self.leases: dict[int, Identity] = {}
        # Leases that ranks take without an answer, which may come late.
        self.taking: dict[int, tuple[int, Identity]] = {}
        # The views of leaders that have taken the lease to continue, and have not published that.
        self.renewed: dict[int, View] = {}
        self.base = {Identity.of(FIRST): Identity.of(FIRST)}
        self.sides = [set(VOTERS)]

    def split(self, _: int) -> None:
        """Split the network in two, or mend it."""
        side = {rank for rank in VOTERS if self.random.random() < 0.5}
        self.sides = self.random.choice(
            ([side, set(VOTERS) - side], [side, set(VOTERS) - side], [set(VOTERS)])
        )

    def reached(self, rank: int) -> list[int]:
        """Return the ranks on the side of one."""
        (side,) = (side for side in self.sides if rank in side)
        return sorted(side - {rank})

    def is_bound(self, rank: int) -> bool:
        """Return whether a rank may promise and accept nothing."""
        return rank in self.taking or rank in self.renewed

    def ask(self, rank: int) -> None:
        """Be a candidate with a new ballot, or ask for the last one again."""
        known, random = self.known, self.random
        if rank not in self.ballots or random.random() < 0.5:
            self.ballots[rank] = known[rank].next_ballot(rank)
            known[rank] = known[rank]._replace(promised=self.ballots[rank])
        for other in self.reached(rank):
            if random.random() < 0.9:
                hears_leader = random.random() < 0.1
                if not self.is_bound(other) and known[other].promises(self.ballots[rank], hears_leader):
                    known[other] = known[other]._replace(promised=self.ballots[rank])
                if random.random() < 0.9:
                    self.answers[rank][other] = known[other]
                    self.adopt(rank, known[other].view)
                    if rank not in self.ballots:
                        return

    def stand(self, rank: int) -> None:
        """Propose as a candidate, if enough have promised."""
        if rank not in self.ballots:
            return
        ballot, known = self.ballots[rank], {**self.answers[rank], rank: self.known[rank]}
        settled = max((each.view for each in known.values()), key=Identity.of)
        base, outcome = base_of(ballot, known, settled, self.electorate, sorted)
        if outcome is Outcome.MINORITY or is_outbid(ballot, known.values()) or base.view.roles[rank] is None:
            return
        again = Ballot.of(base.view) == ballot
        epoch = base.view.epoch + 1 if again else ballot.generation * GENERATION
        passed = is_passed(base, settled, rank)
        content = Proposed(settled) if passed else base
        self.propose(rank, base, settled, epoch, outcome is Outcome.HALF, content)

    def lead(self, rank: int) -> None:
        """Propose as a leader."""
        known = self.known[rank]
        base = known.latest
        if known.view.leader == rank == base.view.leader and known.promised <= Ballot.of(base.view):
            self.propose(rank, base, known.view, base.view.epoch + 1, False)

    def propose(
        self,
        rank: int,
        base: Proposed,
        settled: View,
        epoch: int,
        by_lease: bool,
        content: Proposed | None = None,
    ) -> None:
        """Propose what follows `base`, made from `content`."""
        content = content or base
        lost = {each for each in content.view.alive if each != rank and self.random.random() < 0.1}
        roles = tuple(None if each in lost else role for each, role in enumerate(content.view.roles))
        made = replace(content.view, epoch=epoch, leader=rank, roles=roles)
        proposed = base.followed_by(made, settled, by_lease)
        assert proposed.identity not in self.base, "another view has this identity"
        self.base[proposed.identity] = content.identity
        self.known[rank] = self.known[rank]._replace(accepted=proposed, promised=Ballot.of(made))
        self.proposals[rank] = proposed
        self.acceptors[proposed.identity] = {rank}
        self.proposed.append(proposed)
        for other in self.reached(rank):
            if self.random.random() < 0.9:
                self.accept(other, proposed)

    def late(self, rank: int) -> None:
        """Receive a proposal late, or once more."""
        if self.proposed:
            self.accept(rank, self.random.choice(self.proposed[-5:]))

    def accept(self, rank: int, proposed: Proposed) -> None:
        known = self.known[rank]
        if not self.is_bound(rank) and known.accepts(proposed, hears_leader=self.random.random() < 0.1):
            promised = max(known.promised, Ballot.of(proposed.view))
            self.known[rank] = known._replace(accepted=proposed, promised=promised)
            self.proposals.pop(rank, None)
            if self.random.random() < 0.9:
                self.acceptors[proposed.identity].add(rank)

    def pursue(self, rank: int) -> None:
        """Publish the proposed view, if enough have accepted it."""
        proposed = self.proposals.get(rank)
        if proposed is None:
            return
        outcome = least(self.electorate, self.acceptors[proposed.identity], proposed.ancestors, sorted)
        if outcome is not Outcome.MINORITY:
            number, holder = lease_of(proposed, partial(self.take, rank, self.random.random()))
            if holder not in (None, proposed.identity):
                del self.proposals[rank]
            elif holder is not None or (outcome is Outcome.MAJORITY and not proposed.by_lease):
                del self.proposals[rank]
                self.published.append(replace(proposed.view, lease=number - (holder is None)))
                self.agreed.append(self.published[-1])
                self.adopt(rank, self.published[-1])

    def take(self, rank: int, chance: float, number: int, view: Identity) -> Identity | None:
        """Take a lease, if it can be reached, and the answer comes."""
        if rank in self.taking or chance < 0.2:
            return None
        if chance < 0.4:
            self.taking[rank] = number, view
            return None
        return self.leases.setdefault(number, view)

    def answer(self, rank: int) -> None:
        """Take the lease late, or publish that it was taken."""
        if rank in self.renewed:
            self.publish_renewed(rank)
        elif rank in self.taking:
            self.leases.setdefault(*self.taking.pop(rank))

    def renew(self, rank: int) -> None:
        """As a leader, publish a view without agreement, perhaps with a lease to continue at half of the votes.

        Then the view may also be published later; meanwhile the rank promises and accepts nothing.
        """
        view = self.known[rank].view
        if view.leader == rank and self.known[rank].latest.view == view:
            mine = Identity(*Ballot.of(view), RENEWED)
            follow = [each for each, known in self.known.items() if known.latest.view.leader == rank]
            half = self.electorate.outcome(follow, view.alive) >= Outcome.HALF
            half &= self.known[rank].promised <= Ballot.of(view)
            takes = half and self.random.random() < 0.3
            if takes and self.take(rank, self.random.random(), view.lease + 1, mine) == mine:
                self.renewed[rank] = view
            if rank not in self.renewed or self.random.random() < 0.7:
                self.publish_renewed(rank)

    def publish_renewed(self, rank: int) -> None:
        """As a leader, publish the view after the present one, with the lease that was taken to continue."""
        known = self.known[rank]
        made = replace(known.view, epoch=known.view.epoch + 1)
        taken = self.renewed.pop(rank, None)
        if known.latest.view != known.view or known.view.leader != rank:
            return
        if taken == known.view:
            made = replace(made, lease=taken.lease + 1, agreed=made.epoch)
        self.base[Identity.of(made)] = Identity.of(known.view)
        self.published.append(made)
        self.adopt(rank, made)

    def receive(self, rank: int) -> None:
        """Receive a published view."""
        if self.published:
            self.adopt(rank, self.random.choice(self.published))

    def adopt(self, rank: int, view: View) -> None:
        known = self.known[rank]
        if not known.supersedes(view) and Identity.of(view) > Identity.of(known.view):
            self.known[rank] = known._replace(view=view, accepted=None)
            self.proposals.pop(rank, None)
            self.ballots.pop(rank, None)
            self.answers[rank].clear()

    def check(self) -> None:
        """Check that the views that were agreed on form one chain."""
        chain = sorted(map(Identity.of, self.agreed))
        assert len(set(chain)) == len(chain)
        for one, other in pairwise((Identity.of(FIRST), *chain)):
            origin = other
            while origin > one:
                origin = self.base[origin]
            assert origin == one, f"{other} does not follow from {one}"


def explore(seed: int, steps: int = 60) -> int:
    """Run the model; return how many views have taken effect."""
    random = Random(seed)
    model = Model(random, hosts=random.choice((1, 2, 2, 3, 7)))
    candidate = (model.ask, model.stand, model.pursue)
    some = [
        (model.split,),
        candidate,
        candidate,
        candidate[:2],
        candidate[1:],
        (model.lead, model.pursue),
        (model.pursue,),
        (model.late,),
        (model.receive,),
        (model.renew,),
        (model.answer,),
    ]
    for _ in range(steps):
        rank = random.choice(VOTERS)
        for act in random.choices(some, [2, 2, 2, 2, 1, 1, 2, 2, 2, 1, 1])[0]:
            act(rank)
    model.check()
    return len(model.agreed)


class Fair(Random):
    """Nothing is lost, nobody hears a leader, and each rank asks once."""

    def random(self) -> float:
        return 0.5


def test_a_candidate_that_is_told_of_an_earlier_view_keeps_what_it_follows_of_another_candidate(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leader, elected, candidate, both, last = VOTERS
    model = Model(Fair(), hosts=7)
    sides: dict[int, list[int]] = {leader: [], elected: [candidate, both], candidate: [both, last]}
    monkeypatch.setattr(model, "reached", sides.__getitem__)
    # A view that nobody gets, while another rank is elected; of its view nobody hears.
    model.renew(leader)
    model.ask(elected)
    model.stand(elected)
    model.pursue(elected)
    model.ask(candidate)
    model.stand(candidate)
    assert [each.identity.leader for each in model.proposals[candidate].ancestors] == [leader, elected]
    # The former leader is heard again.
    model.answers[candidate][leader] = model.known[leader]._replace(promised=model.ballots[candidate])
    model.stand(candidate)
    model.pursue(candidate)
    assert [view.leader for view in model.agreed] == [elected, candidate]
    model.check()


def test_views_that_take_effect_follow_from_each_other() -> None:
    """Whatever is asked, believed and lost; in most explorations several views take effect."""
    counts = [explore(seed) for seed in range(400)]
    assert sum(count >= 3 for count in counts) > 200, counts

"""Which events of a state suffice, since they commute with all others that can come before them.

A set of events of one rank suffices (it is *persistent*: Godefroid, "Partial-order methods for the verification of
concurrent systems", 1996) if each event that can come before all of them commutes with them. So either one event of a
rank suffices, if it commutes with all that can happen at that rank before it; or all that are possible at a rank which
nothing else can reach before. Otherwise all events of the state are tried.

What can come is found from too much: each rank, alone, may do what it was seen to do in any order of events, with what
is under way to it and what any rank may send it, no matter whether that is sent in time (Guerraoui and Yabandeh, "Model
checking a networked system without the network", 2011). What a rank does is seen during the search; so the search is
repeated until nothing new is seen. Then what was chosen suffices: of the events that were never seen, take one that
comes first in some order. All that come before it were seen, so they commute with what was chosen, and the search would
have met it.

Events of different ranks commute unless one of them touches what decides the other (`_Effect`). Those of one rank do
if, by the real code, they lead to the same state and send the same in both orders, wherever they can meet.
"""

from __future__ import annotations

from typing import NamedTuple

from mpips.bench.worlds._rank import Ages, Event
from mpips.bench.worlds._world import State, Status, Step, World

PUBLISHED, ENDS = 1 << 29, 1 << 30
"""What an event touches, besides bit r for rank r: the order of views; all others, since its rank ends."""
EVERYTHING = (1 << 31) - 1
MOST_INPUTS = 9
"""What can reach a rank of which one event may suffice, at most: all its orders are tried there."""
NEW_INPUTS = 3
"""Of it, what is not under way yet, at most: real code executes orders that may never happen."""


class _Local(NamedTuple):
    """The state of a rank, and what its events depend on: nothing of other ranks that changes before time passes."""

    rank: int
    state: int
    ages: Ages
    pause: int
    """1: it has just gone on after a pause; 2: and received a message since."""
    time: int
    leases: tuple[tuple[int, str], ...]


class _Effect(NamedTuple):
    after: int
    """The local state, by number; -1: the rank has ended."""
    sent: tuple[int, ...]
    touched: int


_Reach = tuple[frozenset[Step], int, tuple[tuple[int, int], ...]]
"""What the events of a rank send to others, what they touch, and local states with the inputs that are left there."""


class Reduction:
    """The events that suffice, in the states of a world."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.learned = 0
        """How many events of ranks were seen."""
        self._steps: list[Step] = []
        self._numbers: dict[Step, int] = {}
        self._locals: list[_Local] = []
        self._local_numbers: dict[_Local, int] = {}
        self._seen: list[set[tuple[int, int]]] = [set() for _ in range(world.size)]
        self._effects: dict[tuple[int, int], _Effect | None] = {}
        self._left: dict[tuple[int, int], int] = {}
        self._reaches: list[dict[tuple[int, int], _Reach]] = [{} for _ in range(world.size)]
        self._all_reaches: dict[tuple[int, int, int], _Reach | None] = {}
        self._commuting: dict[tuple[int, int, int], bool] = {}

    def learn(self, state: State, step: Step) -> None:
        """Record that an event of a rank can happen."""
        rank = step.rank
        name = self._local(state, rank), self._number(self._with_follower(state, step))
        if name not in self._seen[rank]:
            self._seen[rank].add(name)
            self._reaches[rank].clear()
            self.learned += 1

    def choose(self, state: State, certain: list[Step]) -> list[Step]:
        """Return events that suffice, of those that are certain in a state in which there may be no fault."""
        if len(certain) < 2 or len(set(state.messages)) < len(state.messages):
            # Of equal messages it is not known how many may come.
            return certain
        size = self.world.size
        own: list[list[Step]] = [[] for _ in range(size)]
        for step in certain:
            own[step.rank].append(step)
        places = [self._local(state, rank) for rank in range(size)]
        inputs = [self._inputs(state, steps) for steps in own]
        for message in state.messages:
            # Those that others must precede, too.
            to = self.world.ranks.messages[message][0]
            inputs[to] |= 1 << self._number(Step("receive", to, (message,)))
        ranks = sorted((rank for rank in range(size) if own[rank]), key=lambda rank: len(own[rank]))
        whole: list[Step] = certain
        for rank in ranks:
            if len(own[rank]) < len(whole) and self._is_closed(state, places, inputs, rank, own[rank]):
                whole = own[rank]
        if len(whole) > 1:
            for rank in ranks:
                for step in own[rank]:
                    if self._suffices(state, places, inputs, step):
                        return [step]
        return whole

    def _is_closed(
        self, state: State, places: list[int], inputs: list[int], rank: int, steps: list[Step]
    ) -> bool:
        """Return whether nothing else can reach a rank before one of its events."""
        reached = self._closure(state, places, inputs, rank, -1)
        if reached is None or reached[0] != inputs[rank]:
            return False
        for step in steps:
            effect = self._effect(places[rank], self._number(self._with_follower(state, step)))
            if effect is None or effect.touched & ~(1 << rank | PUBLISHED) or effect.touched & reached[1]:
                return False
        return True

    def _suffices(self, state: State, places: list[int], inputs: list[int], step: Step) -> bool:
        """Return whether one event suffices."""
        rank, number = step.rank, self._number(self._with_follower(state, step))
        effect = self._effect(places[rank], number)
        if effect is None or effect.touched & ~(1 << rank | PUBLISHED) or self._locals[places[rank]].pause:
            return False
        reached = self._closure(state, places, inputs, rank, number)
        if reached is None or reached[1] & effect.touched:
            return False
        return self._commutes(places[rank], number, reached[0])

    def _closure(
        self, state: State, places: list[int], inputs: list[int], rank: int, withheld: int
    ) -> tuple[int, int] | None:
        """Return what may reach a rank, and what others touch meanwhile, besides themselves; None if it is not known.

        The rank does nothing if `withheld` is -1, else all but that event.
        """
        pools, touched, world = list(inputs), 0, self.world
        later = self._later(inputs[rank], withheld)
        pools[rank] &= ~later
        todo = {each for each in range(world.size) if each != rank or withheld >= 0}
        while todo:
            each = todo.pop()
            if state.status[each] is not Status.RUNS:
                continue
            if each == rank:
                new = (pools[each] & ~inputs[each]).bit_count()
                if new > NEW_INPUTS or pools[each].bit_count() > MOST_INPUTS:
                    return None
                reach = self._all_reach(places[each], pools[each], withheld)
            else:
                reach = self._reach(places[each], pools[each])
            if reach is None:
                return None
            sent, touches, _ = reach
            if touches & ENDS or touches == EVERYTHING:
                return None
            if touches & ~(1 << each | PUBLISHED) and state.unheard:
                return None
            if each != rank:
                touched |= touches & PUBLISHED
            for step in sent:
                to = step.rank
                if state.status[to] is not Status.RUNS:
                    continue
                if step.what == "receive" and world.is_moot(step.of[0], state.ranks[to]):
                    continue
                bit = 1 << self._number(step)
                if step.what == "receive" and inputs[to] & bit:
                    return None
                if to == rank and self._is_later(step, withheld):
                    continue
                if not pools[to] & bit:
                    pools[to] |= bit
                    if to != rank or withheld >= 0:
                        todo.add(to)
        return pools[rank], touched

    def _is_later(self, step: Step, withheld: int) -> bool:
        """Return whether an event cannot come before one that is withheld: it is the same, or a later message."""
        if withheld < 0:
            return False
        headers, other = self.world.ranks.headers, self._steps[withheld]
        if not self.world.ordered or step.what != "receive" or other.what != "receive":
            return step == other
        return headers[step.of[0]].sender == headers[other.of[0]].sender

    def _later(self, inputs: int, withheld: int) -> int:
        later = 0
        for number in _members(inputs) if withheld >= 0 else ():
            later |= self._is_later(self._steps[number], withheld) << number
        return later

    # --- one rank ------------------------------------------------------------------------------

    def _with_follower(self, state: State, step: Step) -> Step:
        """Return an event with all that its effect depends on: whether a rank that is heard follows this one."""
        if step.what != "hear":
            return step
        follows = self.world.ranks.facts[state.ranks[step.of[0]]].follows == step.rank
        return step._replace(of=(step.of[0], int(follows)))

    def _number(self, step: Step) -> int:
        number = self._numbers.get(step)
        if number is None:
            number = self._numbers[step] = len(self._steps)
            self._steps.append(step)
        return number

    def _inputs(self, state: State, steps: list[Step]) -> int:
        bits = 0
        for step in steps:
            if step.what != "tick":
                bits |= 1 << self._number(self._with_follower(state, step))
        return bits

    def _local(self, state: State, rank: int) -> int:
        pause = 1 if rank in state.fresh else 2 if rank in state.ahead else 0
        return self._local_number(
            _Local(rank, state.ranks[rank], state.ages[rank], pause, state.time, state.leases)
        )

    def _local_number(self, local: _Local) -> int:
        number = self._local_numbers.get(local)
        if number is None:
            number = self._local_numbers[local] = len(self._locals)
            self._locals.append(local)
        return number

    def _effect(self, at: int, number: int) -> _Effect | None:
        """Return what an event does in a local state; None if it cannot happen there."""
        name = at, number
        if name not in self._effects:
            self._effects[name] = self._do(self._locals[at], self._steps[number])
        return self._effects[name]

    def _do(self, local: _Local, step: Step) -> _Effect | None:
        ranks = self.world.ranks
        rank, state, ages, pause, time, leases = local
        own = 1 << rank
        if step.what in ("hear", "followed"):
            other, follows = step.of
            unconfirmed = tuple(
                0 if each == other and follows else age for each, age in enumerate(ages.unconfirmed)
            )
            ages = ages._replace(unconfirmed=unconfirmed)
            if step.what == "hear":
                silent, deaf = (
                    tuple(0 if each == other else age for each, age in enumerate(old))
                    for old in (ages.silent, ages.deaf)
                )
                ages = ages._replace(silent=silent, deaf=deaf)
            return _Effect(self._local_number(local._replace(ages=ages)), (), own)
        if step.what == "receive":
            if pause == 2:
                return None
            effect = ranks.arrival(state, time, step.of[0])
            pause = 2 if pause else 0
        else:
            effect = ranks.tick(state, Event(time, -1, step.of, ages, leases))
            pause = 0
        before, after = ranks.facts[state], ranks.facts[effect.state]
        if after.left:
            return _Effect(-1, effect.sent, own | ENDS)
        touched = own | (PUBLISHED if effect.published else 0)
        if effect.leases and effect.leases != leases:
            return _Effect(-1, (), EVERYTHING)
        if after.follows != before.follows:
            for leader in (before.follows, after.follows):
                touched |= 1 << leader if leader >= 0 else 0
        if after.leads and not before.leads:
            ages = ages._replace(unconfirmed=(0,) * self.world.size)
        at = self._local_number(_Local(rank, effect.state, ages, pause, time, leases))
        return _Effect(at, effect.sent, touched)

    def _sent(self, at: int, effect: _Effect) -> list[Step]:
        """Return what an event causes at other ranks."""
        messages, facts = self.world.ranks.messages, self.world.ranks.facts
        sent = [Step("receive", messages[each][0], (each,)) for each in effect.sent]
        if effect.after >= 0:
            before, after = facts[self._locals[at].state], facts[self._locals[effect.after].state]
            if after.follows not in (before.follows, -1):
                sent.append(Step("followed", after.follows, (self._locals[at].rank, 1)))
        return sent

    def _remaining(self, at: int, inputs: int) -> int:
        """Return those of some inputs that still have an effect in a local state."""
        name = at, inputs
        found = self._left.get(name)
        if found is None:
            local, found = self._locals[at], 0
            excluded = self.world.ranks.facts[local.state].excluded
            for number in _members(inputs):
                step = self._steps[number]
                if step.what == "receive":
                    gone = self.world.is_moot(step.of[0], local.state)
                else:
                    gone = step.of[0] in excluded
                found |= 0 if gone else 1 << number
            self._left[name] = found
        return found

    def _reach(self, at: int, inputs: int) -> _Reach:
        """Return what a rank was seen to do with some inputs, in any order."""
        reaches = self._reaches[self._locals[at].rank]
        found = reaches.get((at, inputs))
        if found is None:
            reached = self._explore(at, inputs, -1, self._seen[self._locals[at].rank])
            assert reached is not None
            found = reaches[at, inputs] = reached
        return found

    def _all_reach(self, at: int, inputs: int, withheld: int) -> _Reach | None:
        """Return what a rank can do with some inputs, in any order, but for one event; None if they are too many."""
        name = at, inputs, withheld
        if name not in self._all_reaches:
            self._all_reaches[name] = self._explore(at, inputs, withheld, None)
        return self._all_reaches[name]

    def _explore(
        self, at: int, inputs: int, withheld: int, seen: set[tuple[int, int]] | None
    ) -> _Reach | None:
        tick = self._number(Step("tick", self._locals[at].rank))
        met, todo = {(at, inputs)}, [(at, inputs)]
        sent: set[Step] = set()
        touched = 0
        while todo:
            here, left = todo.pop()
            for number in _members(left | (0 if tick == withheld else 1 << tick)):
                if seen is not None and (here, number) not in seen and self._steps[number].what != "followed":
                    continue
                effect = self._effect(here, number)
                if effect is None:
                    continue
                touched |= effect.touched
                if touched & ENDS or touched == EVERYTHING:
                    return frozenset(sent), touched, ()
                if len(set(effect.sent)) < len(effect.sent):
                    return frozenset(sent), EVERYTHING, ()
                sent.update(self._sent(here, effect))
                rest = left & ~(1 << number)
                if effect.after != here:
                    rest = self._remaining(effect.after, rest)
                if (effect.after, rest) not in met:
                    met.add((effect.after, rest))
                    todo.append((effect.after, rest))
        return frozenset(sent), touched, tuple(met)

    def _commutes(self, at: int, number: int, inputs: int) -> bool:
        """Return whether an event commutes with all others of its rank, in any local state before it."""
        name = at, number, inputs
        found = self._commuting.get(name)
        if found is None:
            found = self._commuting[name] = self._commute(at, number, inputs)
        return found

    def _commute(self, at: int, number: int, inputs: int) -> bool:
        tick = self._number(Step("tick", self._locals[at].rank))
        reach = self._all_reach(at, inputs, number)
        if reach is None or reach[1] & ENDS or reach[1] == EVERYTHING:
            return False
        for here, left in reach[2]:
            if not self._is_left(here, number):
                continue
            for other in _members(left | (0 if tick == number else 1 << tick)):
                both = self._both(here, number, other)
                if both is None or both != self._both(here, other, number):
                    return False
        return True

    def _is_left(self, at: int, number: int) -> bool:
        return self._steps[number].what == "tick" or bool(self._remaining(at, 1 << number))

    def _both(self, at: int, *events: int) -> tuple[int, list[int], int] | None:
        """Return what two events do, one after the other."""
        sent: list[int] = []
        touched = 0
        for number in events:
            if not self._is_left(at, number):
                continue
            effect = self._effect(at, number)
            if effect is None or effect.after < 0 or touched & effect.touched & PUBLISHED:
                return None
            at, touched = effect.after, touched | effect.touched
            sent += effect.sent
        return at, sorted(sent), touched


def _members(bits: int) -> list[int]:
    found = []
    while bits:
        bit = bits & -bits
        bits ^= bit
        found.append(bit.bit_length() - 1)
    return found

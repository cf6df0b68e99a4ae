"""The search through all orders of events of a small world.

It is depth-first, over states: two orders of events that lead to the same state are one from then on. Of a state in
which no fault can strike, only events are tried that suffice (`mpips.bench.worlds._reduced`): so states are left out
that others lead to. No state is left out in which time passes or the run ends, and no event of a rank in one of its
own states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random

from mpips.bench.worlds._reduced import Reduction
from mpips.bench.worlds._world import State, Status, Step, World

FAULTS = frozenset(("kill", "pause", "lose"))
OFTEN = 1 / 12
"""How often a fault is tried before other events, in a random order."""
LOCAL = frozenset(("receive", "tick", "report", "hear"))
"""Events of one rank."""


@dataclass
class Violation:
    """What went wrong, and by which events."""

    what: str
    steps: list[Step]
    after: int
    """How many transitions had been tried."""


@dataclass
class Found:
    """What a search has found."""

    states: int = 0
    transitions: int = 0
    ends: int = 0
    """Orders that were followed to their end, or to a state that was met before."""
    orders: int = 0
    """Orders of events from the beginning to an end that the states and transitions contain, as far as they were
    followed."""
    quiet: frozenset[int] = frozenset()
    """The states, by hash, in which time may pass, or the run ends."""
    executed: int = 0
    """Events of single ranks that were executed by real code, each once."""
    passes: int = 0
    """How often the search was repeated, until no event of a rank was new."""
    deepest: int = 0
    seconds: float = 0.0
    complete: bool = False
    """Whether all orders were tried."""
    violations: list[Violation] = field(default_factory=list)


class _Visit:
    """A state on the present path, and the event that was tried last."""

    __slots__ = ("key", "orders", "state", "step", "todo", "tried")

    def __init__(self, state: State, key: int, todo: list[Step]) -> None:
        self.state, self.key, self.todo = state, key, todo
        self.tried = self.orders = 0
        self.step = Step("")


class _Search:
    """One depth-first search; see the module."""

    def __init__(self, world: World, found: Found, reduction: Reduction | None) -> None:
        self.world, self.found, self.reduction = world, found, reduction
        self.path: list[_Visit] = []
        self.quiet: set[int] = set()
        """The states in which time may pass, or the run ends."""
        # By state: the number of orders of events from there.
        self._orders: dict[int, int] = {}

    @property
    def orders(self) -> int:
        """The number of orders of events from the beginning on, as far as they were followed."""
        return self.path[0].orders if self.path else self._orders[hash(self.world.first())]

    def visit(self, state: State) -> None:
        """Go to a state, the first, or that after the last event."""
        world, found, path = self.world, self.found, self.path
        key = hash(state)
        orders = self._orders.get(key)
        if orders is not None:
            found.ends += 1
            path[-1].orders += orders
            return
        found.states += 1
        todo: list[Step] = []
        if not world.is_over(state):
            todo, faults = world.certain(state), world.faults_in(state)
            if not todo:
                self.quiet.add(key)
                todo = world.passing(state)
                if not todo and Status.PAUSED not in state.status and (wrong := world.ended(state)):
                    self.violate(wrong)
            elif self.reduction is not None and not faults:
                todo = self.reduction.choose(state, todo)
            todo = todo + faults
        path.append(_Visit(state, key, todo))
        found.deepest = max(found.deepest, len(path))

    def violate(self, what: str) -> None:
        steps = [node.step for node in self.path]
        self.found.violations.append(Violation(what, steps, self.found.transitions))

    def leave(self) -> None:
        """Leave the last state: all that is needed was tried from it."""
        node = self.path.pop()
        self.found.ends += not node.todo
        total = self._orders[node.key] = node.orders or 1
        if self.path:
            self.path[-1].orders += total

    def go(self) -> None:
        """Try the next event in the last state."""
        world, node = self.world, self.path[-1]
        node.step = step = node.todo[node.tried]
        node.tried += 1
        self.found.transitions += 1
        if self.reduction is not None and step.what in LOCAL:
            self.reduction.learn(node.state, step)
        after = world.after(node.state, step)
        if wrong := world.wrong(node.state, after, step):
            self.violate(wrong)
        else:
            self.visit(after)


def search(
    world: World,
    *,
    most: int = 1 << 62,
    seconds: float = float("inf"),
    reduces: bool = True,
    progress: Callable[[Found], None] = lambda found: None,
) -> Found:
    """Try all orders of events, or `most` transitions, or for so many `seconds`; stop at the first violation.

    `reduces`: of orders that only differ by events that commute, not all are tried. Then the search is repeated until
    no event of a rank is new; what is found is that of the last time.
    """
    began, reduction, times = time.perf_counter(), Reduction(world) if reduces else None, 0
    while True:
        learned, times = reduction.learned if reduction is not None else 0, times + 1
        found = Found(passes=times)
        running = _Search(world, found, reduction)
        running.visit(world.first())
        path = running.path
        while path and not found.violations:
            node = path[-1]
            if node.tried == len(node.todo):
                running.leave()
                continue
            if found.transitions >= most or (
                found.transitions % 64 == 63 and time.perf_counter() - began > seconds
            ):
                break
            if found.transitions % 4096 == 4095:
                found.seconds = time.perf_counter() - began
                progress(found)
            running.go()
        if path or reduction is None or reduction.learned == learned:
            break
    found.complete = not path and not found.violations
    found.orders, found.quiet = running.orders, frozenset(running.quiet)
    found.executed, found.seconds = world.ranks.executed, time.perf_counter() - began
    return found


def sample(
    world: World, seed: int, *, most: int = 1 << 62, seconds: float = float("inf"), found: Found | None = None
) -> Found:
    """Follow random orders of events from the beginning, `most` or for so many `seconds`; stop at the first violation.

    No order is followed twice, nor through a state of which all orders were followed. `found` is continued.
    """
    found, began, random = found or Found(), time.perf_counter(), Random(seed)
    first, before = world.first(), found.seconds
    # By state: the events of which not all orders were followed.
    left: dict[int, list[Step]] = {}
    while found.ends < most and time.perf_counter() - began < seconds and left.get(hash(first)) != []:
        state, path = first, list[tuple[int, Step]]()
        while True:
            key = hash(state)
            steps = left.get(key)
            if steps is None:
                found.states += 1
                steps = left[key] = [] if world.is_over(state) else world.steps(state)
                if world.is_end(state) and (wrong := world.ended(state)):
                    found.violations.append(Violation(wrong, [step for _, step in path], found.ends + 1))
            if not steps:
                break
            step = _chosen(steps, random)
            path.append((key, step))
            found.transitions += 1
            after = world.after(state, step)
            if wrong := world.wrong(state, after, step):
                found.violations.append(Violation(wrong, [step for _, step in path], found.ends + 1))
                break
            state = after
        found.ends += 1
        found.deepest = max(found.deepest, len(path))
        if found.violations:
            break
        for key, step in reversed(path):
            left[key].remove(step)
            if left[key]:
                break
    found.complete = left.get(hash(first)) == []
    found.executed, found.seconds = world.ranks.executed, before + time.perf_counter() - began
    return found


def _chosen(steps: list[Step], random: Random) -> Step:
    """Choose an event; seldom a fault, so that there is something to disturb."""
    faults = [step for step in steps if step.what in FAULTS]
    others = len(steps) > len(faults) and (not faults or random.random() > OFTEN)
    return random.choice([step for step in steps if step.what not in FAULTS] if others else faults or steps)


def shortest(world: World, depth: int, most: int = 2_000_000) -> list[Step] | None:
    """Return the shortest order of events that violates something, of at most `depth` events; None if none is found."""
    first = world.first()
    met: dict[int, tuple[int, Step]] = {hash(first): (0, Step(""))}
    states = [first]
    for _ in range(depth):
        following = []
        for state in states:
            for step in [] if world.is_over(state) else world.steps(state):
                after = world.after(state, step)
                key = hash(after)
                if key in met and not world.wrong(state, after, step):
                    continue
                met.setdefault(key, (hash(state), step))
                ends = world.is_end(after) and world.ended(after)
                if world.wrong(state, after, step) or ends:
                    return [*_path(met, hash(state)), step]
                following.append(after)
            if len(met) > most:
                return None
        states = following
    return None


def _path(met: dict[int, tuple[int, Step]], key: int) -> list[Step]:
    steps: list[Step] = []
    while met[key][0]:
        key, step = met[key]
        steps.append(step)
    return steps[::-1]


def replayed(world: World, events: Sequence[str]) -> str:
    """Do some events, as `World.text` describes them; return what is wrong after them, "" if nothing is.

    ValueError: one of them cannot happen there.
    """
    state = world.first()
    for event in events:
        step = next((each for each in world.steps(state) if world.text(each) == event), None)
        if step is None:
            possible = "; ".join(map(world.text, world.steps(state)))
            raise ValueError(f"{event} cannot happen, but {possible}")
        after = world.after(state, step)
        if wrong := world.wrong(state, after, step):
            return wrong
        state = after
    return world.ended(state) if world.is_end(state) else ""

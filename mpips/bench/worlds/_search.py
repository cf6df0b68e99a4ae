"""The search through all orders of events of a small world.

It is depth-first, over states: two orders of events that lead to the same state are one from then on. Of events that
commute, since they are of different ranks, only one order is tried, by *sleep sets*: an event that was tried before
another one is not tried right after it again (Godefroid, "Partial-order methods for the verification of concurrent
systems", 1996; Flanagan and Godefroid, "Dynamic partial-order reduction for model checking software", 2005). A sleep
set is kept with each state that was met; if the state is met again, what slept then and does not now is tried.

Sleep sets omit no state, so whatever can go wrong in a state is found.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from mpips.bench.worlds._world import State, Step, World

Sleep = frozenset[Step]
FAULTS = frozenset(("kill", "pause", "lose"))
OFTEN = 1 / 12
"""How often a fault is tried before other events, in a random order."""
LOCAL = frozenset(("receive", "tick", "report"))
"""Events of one rank, which commute with those of others, unless both use the leases."""


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
    """Orders of events from the beginning to an end that the states and transitions contain, at least."""
    executed: int = 0
    """Events of single ranks that were executed by real code, each once."""
    deepest: int = 0
    seconds: float = 0.0
    complete: bool = False
    """Whether all orders were tried."""
    violations: list[Violation] = field(default_factory=list)


class _Visit:
    """A state on the present path."""

    __slots__ = ("key", "orders", "pending", "sleep", "state", "step", "tried")

    def __init__(self, state: State, key: int, pending: Iterator[Step], sleep: Sleep, step: Step) -> None:
        self.state, self.key, self.pending, self.sleep, self.step = state, key, pending, sleep, step
        # Events tried from here that may sleep.
        self.tried: list[Step] = []
        self.orders = 0


def search(
    world: World,
    *,
    most: int = 1 << 62,
    seconds: float = float("inf"),
    progress: Callable[[Found], None] = lambda found: None,
) -> Found:
    """Try all orders of events, or `most` transitions, or for so many `seconds`; stop at the first violation."""
    found, began = Found(), time.perf_counter()
    # By state: the events that slept there; and the orders from there on.
    slept: dict[int, Sleep] = {}
    orders: dict[int, int] = {}
    # Equal sets, once.
    same: dict[Sleep, Sleep] = {}
    stack: list[_Visit] = []

    def visit(state: State, sleep: Sleep, step: Step) -> None:
        key = hash(state)
        before = slept.get(key)
        if before is None:
            steps = [] if world.is_over(state) else world.steps(state)
            found.states += 1
            if not steps and not world.is_over(state) and (wrong := world.ended(state)):
                violate(wrong, step)
                return
            sleeping = sleep & frozenset(steps)
            slept[key] = same.setdefault(sleeping, sleeping)
            todo = [each for each in steps if each not in sleep]
        else:
            todo = [each for each in before if each not in sleep]
            sleeping = before & sleep
            slept[key] = same.setdefault(sleeping, sleeping)
        if not todo:
            found.ends += 1
            orders.setdefault(key, 1)
            if stack:
                stack[-1].orders += orders[key]
            return
        stack.append(_Visit(state, key, iter(todo), sleep, step))
        found.deepest = max(found.deepest, len(stack))

    def violate(what: str, step: Step) -> None:
        steps = [each.step for each in stack[1:]]
        found.violations.append(Violation(what, [*steps, step], found.transitions))

    visit(world.first(), frozenset(), Step(""))
    while stack and not found.violations:
        here = stack[-1]
        step = next(here.pending, None)
        if step is None:
            stack.pop()
            total = orders[here.key] = orders.get(here.key, 0) + (here.orders or 1)
            if stack:
                stack[-1].orders += total
            continue
        found.transitions += 1
        if found.transitions % 4096 == 0:
            found.seconds = time.perf_counter() - began
            progress(found)
        if found.transitions >= most or (
            found.transitions % 64 == 0 and time.perf_counter() - began > seconds
        ):
            break
        after, looked = world.after(here.state, step)
        if wrong := world.wrong(here.state, after, step):
            violate(wrong, step)
            break
        own = step.what in LOCAL and not looked and after.ages == here.state.ages
        sleep = frozenset(each for each in (*here.sleep, *here.tried) if own and each.rank != step.rank)
        if own:
            here.tried.append(step)
        visit(after, sleep, step)
    else:
        found.complete = not found.violations
    found.orders = max(orders.get(hash(world.first()), 0), sum(each.orders for each in stack[:1]))
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
                if not steps and not world.is_over(state) and (wrong := world.ended(state)):
                    found.violations.append(Violation(wrong, [step for _, step in path], found.ends + 1))
            if not steps:
                break
            step = _chosen(steps, random)
            path.append((key, step))
            found.transitions += 1
            after, _ = world.after(state, step)
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
                after, _ = world.after(state, step)
                key = hash(after)
                if key in met and not world.wrong(state, after, step):
                    continue
                met.setdefault(key, (hash(state), step))
                ends = not world.is_over(after) and not world.steps(after) and world.ended(after)
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
        after, _ = world.after(state, step)
        if wrong := world.wrong(state, after, step):
            return wrong
        state = after
    return "" if world.steps(state) or world.is_over(state) else world.ended(state)

"""Consistency models: functions from a task's time to the times that it depends on.

Tasks run in parallel unless one is declared to depend on another (paper, sections 3.4 and 3.5). The
dependencies of all tasks make a graph, and a consistency model is a rule that defines it:

    sequential   task t depends on every earlier task: an execution as on one machine
    eventual     task t depends on nothing: all tasks may run at once
    bounded      task t depends on every task <= t - tau - 1: at most tau + 1 run at once;
                 tau = 0 is sequential, tau = infinity eventual

A model is any callable that takes a time and returns a collection of earlier times, so a user's own rule is a
plain function. The graph may be static, or change while it runs: `Bounded` is a callable whose `tau` can be
raised or lowered at any moment, for the tasks that are not yet issued. Pushes and pulls can have models of
their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from mpips.typed import MOST

Consistency = Callable[[int], Collection[int]]
"""A consistency model: the times that the task of a time depends on, all of them earlier."""


def sequential(time: int) -> range:
    """Return every earlier time.

    >>> sequential(3)
    range(0, 3)
    """
    return range(time)


def eventual(time: int) -> range:
    """Return no times.

    >>> list(eventual(3))
    []
    """
    return range(0)


class Bounded:
    """Bounded delay: a task at `time` depends on every task <= time - tau - 1.

    `tau` is an int >= 0 that can be changed while tasks run; ValueError for another.

    >>> model = Bounded(1)
    >>> model(5)
    range(0, 4)
    >>> model.tau = 3
    >>> model(5)
    range(0, 2)
    """

    __slots__ = ("_tau",)

    def __init__(self, tau: int) -> None:
        self.tau = tau

    @property
    def tau(self) -> int:
        """The greatest number of unfinished tasks that a task may overtake; ValueError if it is negative."""
        return self._tau

    @tau.setter
    def tau(self, tau: int) -> None:
        if tau < 0:
            raise ValueError(f"tau must be at least 0, got {tau}")
        self._tau = tau

    def __call__(self, time: int) -> range:
        """Return every time <= time - tau - 1, by the tau of this moment."""
        return range(max(0, time - self._tau))

    def __repr__(self) -> str:
        return f"bounded({self._tau})"


def bounded(tau: int) -> Bounded:
    """Return the bounded delay model of `tau`, whose `tau` can be changed later; ValueError if negative.

    >>> bounded(1)(3)
    range(0, 2)
    """
    return Bounded(tau)


def unmet(dependencies: Collection[int], unfinished: Iterable[int]) -> list[int]:
    """Return the tasks of `unfinished` that are depended on: O(unfinished), however old the job.

    >>> unmet(bounded(1)(3), unfinished=[1, 2])
    [1]
    """
    return [time for time in unfinished if time in dependencies]


@dataclass(frozen=True)
class ConsistencySpec:
    """The job file's table [consistency]: which tasks wait for which (paper, section 3.5).

    Raises:
        ValueError: a delay is negative, or given to a model that has none.

    >>> ConsistencySpec("bounded", tau=0).is_sequential
    True
    """

    model: Literal["sequential", "bounded", "eventual"] = "bounded"
    """A task waits for all earlier ones, for those more than tau back, or for none."""
    tau: int = field(default=0, metadata={"at_least": 0, "at_most": MOST})
    """How many unfinished tasks a task may overtake under "bounded"; with 0 it is sequential."""
    push_tau: int | None = field(default=None, metadata={"at_least": 0, "at_most": MOST})
    """The same for pushes alone; tau unless given."""
    pull_tau: int | None = field(default=None, metadata={"at_least": 0, "at_most": MOST})
    """The same for pulls alone; tau unless given."""

    def __post_init__(self) -> None:
        delays = {"tau": self.tau, "push_tau": self.push_tau, "pull_tau": self.pull_tau}
        for name, delay in delays.items():
            if delay is not None and delay < 0:
                raise ValueError(f"{name} must be at least 0, got {delay}")
            if delay and self.model != "bounded":
                raise ValueError(f'{name} is {delay}, but model = "{self.model}" has no delay: use "bounded"')

    @property
    def is_sequential(self) -> bool:
        """Return whether tasks run one after the other, so that results do not depend on the layout."""
        if self.model == "bounded":
            return self.tau == 0 and not self.push_tau and not self.pull_tau
        return self.model == "sequential"


class PushPull(NamedTuple):
    """The models of pushes and of pulls.

    >>> PushPull(push=eventual, pull=sequential).pull(2)
    range(0, 2)
    """

    push: Consistency
    pull: Consistency


def from_spec(spec: ConsistencySpec) -> Consistency:
    """Return the model that the job file names, for tasks of any kind; a new `Bounded` for each call."""
    if spec.model == "sequential":
        return sequential
    return eventual if spec.model == "eventual" else Bounded(spec.tau)


def push_pull(spec: ConsistencySpec) -> PushPull:
    """Return the models of pushes and pulls, each with its own delay.

    >>> models = push_pull(ConsistencySpec("bounded", tau=2, pull_tau=0))
    >>> models.push(5), models.pull(5)
    (range(0, 3), range(0, 5))
    """
    if spec.model != "bounded":
        return PushPull(from_spec(spec), from_spec(spec))
    return PushPull(
        Bounded(spec.tau if spec.push_tau is None else spec.push_tau),
        Bounded(spec.tau if spec.pull_tau is None else spec.pull_tau),
    )

"""Assignment of data parts to workers (paper, section 4.6: the task scheduler).

Data is cut into parts (`Cut`). The scheduler assigns every part to a worker and records its progress. The part of a
lost worker goes to its replacement, or else to the worker with the least work left; new workers, and idle ones, get
parts that are not started.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Any, NamedTuple, Self

from mpips.errors import InputError


class Cut(NamedTuple):
    """A partition of the data into `coarse` parts, for the first read, each of `fine` parts, which can be reassigned.

    Part p is the (p // coarse)-th of the fine parts of the coarse part p % coarse.

    >>> cut = Cut(coarse=2, fine=3)
    >>> cut.parts, sorted(range(6), key=cut.order)  # parts 0, 2 and 4 are cut from the coarse part 0
    (6, [0, 2, 4, 1, 3, 5])
    >>> list(cut.slices(["a.svm", "b.svm"], parts=[0, 2, 4]))
    [(['a.svm'], 0, 1)]
    """

    coarse: int
    fine: int = 1

    @classmethod
    def for_workers(cls, parts: int, workers: int, fine: int = 1) -> Self:
        """Return the partition by [data] `parts`; if that is 0, a coarse part for each worker, of `fine` parts each.

        Raises:
            InputError: there are fewer parts than workers.

        >>> Cut.for_workers(parts=0, workers=3, fine=2), Cut.for_workers(parts=8, workers=3)
        (Cut(coarse=3, fine=2), Cut(coarse=8, fine=1))
        """
        if 0 < parts < workers:
            raise InputError(
                f"[data] parts = {parts} are too few for {workers} workers: use at least as many"
            )
        return cls(parts or workers, 1 if parts else fine)

    @property
    def parts(self) -> int:
        """Return the number of fine parts."""
        return self.coarse * self.fine

    def order(self, part: int) -> tuple[int, int]:
        """Return the sort key of a part; the parts of one coarse part are adjacent in this order."""
        return part % self.coarse, part // self.coarse

    def shares(self, files: Sequence[str]) -> int:
        """Return how many coarse parts share the examples of a file: 1 if each has files of its own.

        >>> Cut(coarse=2, fine=3).shares(["a", "b"]), Cut(coarse=2, fine=3).shares(["a"])
        (1, 2)
        """
        return 1 if len(files) >= self.coarse else self.coarse

    def slices(self, files: Sequence[str], parts: Iterable[int]) -> Iterator[tuple[list[str], int, int]]:
        """Yield the slices to read for some parts, in their order: (files, part, of) for `mpips.data.read` each.

        Adjacent fine parts that together are every n-th part of a coarse one are read at once.
        """
        left = list(parts)
        while left:
            coarse, first = self.order(left[0])
            within = _narrowed(files, (coarse, self.coarse))
            step = next(
                step for step in range(first + 1, self.fine + 1) if self._together(left, step, within)
            )
            del left[: self.fine // step]
            yield within if step == 1 else _narrowed(files, (coarse, self.coarse), (first, step))

    def _together(self, parts: list[int], step: int, within: tuple[list[str], int, int]) -> bool:
        """Return whether `parts` begins with every `step`-th part of their coarse part, which one slice can read."""
        count = self.fine // step
        if count * step != self.fine or parts[:count] != [
            parts[0] + each * step * self.coarse for each in range(count)
        ]:
            return False
        # Fine parts are ranges of examples where whole files are too few, which a coarser slice may not be.
        files, _, of = within
        return step == 1 or of > 1 or not step <= len(files) < self.fine


def _narrowed(files: Sequence[str], *steps: tuple[int, int]) -> tuple[list[str], int, int]:
    """Select one part of many, step by step: whole files while there are enough of them, then examples."""
    chosen, part, of = list(files), 0, 1
    for number, count in steps:
        if of == 1 and len(chosen) >= count:
            chosen = chosen[number::count]
        else:
            part, of = part + number * of, of * count
    return chosen, part, of


@dataclass
class Part:
    """One part of the data: its worker and its progress."""

    number: int
    worker: int
    begun: bool = False
    """Whether its worker has started it."""
    done: int = 0
    """Steps of it that are done, by any worker."""
    finished: bool = False


class Workload:
    """The assignment of a data set's parts to workers, which are any integers.

    Part p is first assigned to worker p modulo their number, in their order. Raises ValueError for no parts or no
    workers.

    >>> load = Workload(parts=4, workers=[10, 11])
    >>> [part.number for part in load.of(11)]
    [1, 3]
    >>> for number in (1, 3):
    ...     load.note(number, steps=5, finished=True)
    >>> load.hand_over(), load.finished  # worker 11 is idle, and gets a part that is not started
    ([2], False)
    >>> load.follow([11]), [part.number for part in load.of(11)]
    ({}, [0, 2])
    """

    def __init__(self, parts: int, workers: Iterable[int]) -> None:
        self.workers = list(workers)
        if parts < 1 or not self.workers:
            raise ValueError(f"{parts} parts for {len(self.workers)} workers: there must be some of both")
        self.parts = [Part(number, self.workers[number % len(self.workers)]) for number in range(parts)]

    def state(self) -> dict[str, Any]:
        """Return the whole state, JSON-able."""
        return {"workers": list(self.workers), "parts": [astuple(part) for part in self.parts]}

    @classmethod
    def restored(cls, state: dict[str, Any]) -> Self:
        """Return the workload that `state` returned the state of.

        >>> load = Workload(parts=2, workers=[10, 11])
        >>> load.note(1, steps=3, finished=False)
        >>> Workload.restored(load.state()).parts == load.parts
        True
        """
        made = cls(len(state["parts"]), state["workers"])
        made.parts = [Part(*each) for each in state["parts"]]
        return made

    def of(self, worker: int) -> list[Part]:
        """Return the unfinished parts of a worker, started ones first."""
        mine = [part for part in self.parts if part.worker == worker and not part.finished]
        return sorted(mine, key=lambda part: not part.begun)

    @property
    def finished(self) -> bool:
        """Whether every part is finished."""
        return all(part.finished for part in self.parts)

    def note(self, number: int, steps: int, finished: bool) -> None:
        """Record that a part's worker has done `steps` more steps of it, or finished it."""
        part = self.parts[number]
        part.begun, part.done, part.finished = True, part.done + steps, finished

    def follow(self, workers: Sequence[int]) -> dict[int, int]:
        """Replace the workers; return the lost worker that each new one replaces: new worker -> lost worker.

        New workers replace lost ones. If more were lost, their remaining parts go to the workers with the least work
        left; if more are new, these take parts that are not started from the workers with most. Raises ValueError if
        `workers` is empty.
        """
        if not workers:
            raise ValueError("no worker is left")
        departed = [worker for worker in self.workers if worker not in workers]
        joined = [worker for worker in workers if worker not in self.workers]
        places = dict(zip(joined, departed, strict=False))
        replacements = {lost: newcomer for newcomer, lost in places.items()}
        self.workers = list(workers)
        lost = [part for part in self.parts if part.worker in departed]
        # Replacements first: only then is it known which worker has least left.
        for part in sorted(lost, key=lambda part: part.worker not in replacements):
            self._give(part, replacements[part.worker] if part.worker in replacements else self._least())
        for newcomer in joined[len(departed) :]:
            while self._relieve(newcomer, 2):
                pass
        return places

    def hand_over(self) -> list[int]:
        """Move a part that is not started to each idle worker, from the worker with most; return the moved parts."""
        idle = [worker for worker in self.workers if not self.of(worker)]
        return [part.number for part in map(self._relieve, idle) if part is not None]

    def _relieve(self, worker: int, excess: int = 1) -> Part | None:
        """Move a part to a worker from the one with most left, if that has at least `excess` parts more."""
        loads = self._loads()
        free = {part.worker for part in self.parts if not (part.begun or part.finished)}
        fullest = max(free, key=lambda each: (loads[each], -self.workers.index(each)), default=worker)
        if loads[fullest] - loads[worker] < excess:
            return None
        part = next(part for part in reversed(self.of(fullest)) if not part.begun)
        self._give(part, worker)
        return part

    def _least(self) -> int:
        loads = self._loads()
        return min(self.workers, key=lambda each: (loads[each], self.workers.index(each)))

    def _loads(self) -> Counter[int]:
        return Counter(part.worker for part in self.parts if not part.finished)

    def give(self, number: int, worker: int) -> None:
        """Assign a part to another worker, which starts it anew.

        >>> load = Workload(parts=4, workers=[10, 11])
        >>> load.give(0, worker=11)
        >>> [part.number for part in load.of(11)]
        [0, 1, 3]
        """
        self._give(self.parts[number], worker)

    @staticmethod
    def _give(part: Part, worker: int) -> None:
        part.worker, part.begun = worker, False

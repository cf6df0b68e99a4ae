"""The workload table: which worker has which part of the data (paper, section 3.2: the task scheduler).

Data is cut into parts (`Cut`). The scheduler assigns every part to a worker and notes what comes of it. A part whose
worker is lost goes to whoever takes that worker's place, or else to the worker that has least to do; newcomers, and
workers that are out of work, are given parts that nobody has begun.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Cut(NamedTuple):
    """Data is cut into `coarse` parts, and each of them into `fine` ones: what one reads at first, and what moves.

    Part p is the (p // coarse)-th of the fine parts of the coarse part p % coarse.
    """

    coarse: int
    fine: int = 1

    @property
    def parts(self) -> int:
        """Return how many fine parts there are."""
        return self.coarse * self.fine

    def order(self, part: int) -> tuple[int, int]:
        """Return the key by which parts are sorted, so that those of one coarse part stand together."""
        return part % self.coarse, part // self.coarse

    def slices(self, files: Sequence[str], parts: Iterable[int]) -> Iterator[tuple[list[str], int, int]]:
        """Give what to read for some parts, in their order: (files, part, of) for `mpips.data.read` each.

        Fine parts that are together every so many-th of a coarse one, and stand together, are read at once.
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
        """Tell whether some parts begin with every `step`-th one of their coarse part, which can be read as that."""
        count = self.fine // step
        if count * step != self.fine or parts[:count] != [
            parts[0] + each * step * self.coarse for each in range(count)
        ]:
            return False
        files, _, of = within  # fine parts may be examples where so few would be whole files
        return step == 1 or of > 1 or not step <= len(files) < self.fine


def _narrowed(files: Sequence[str], *steps: tuple[int, int]) -> tuple[list[str], int, int]:
    """Take one part of many, step by step: whole files while there are enough of them, then examples."""
    chosen, part, of = list(files), 0, 1
    for number, count in steps:
        if of == 1 and len(chosen) >= count:
            chosen = chosen[number::count]
        else:
            part, of = part + number * of, of * count
    return chosen, part, of


@dataclass
class Part:
    """One part of the data: who has it, and how far that worker is with it."""

    number: int
    worker: int
    begun: bool = False
    """Whether its worker is at it."""
    done: int = 0
    """How many steps of it are done, by whoever."""
    finished: bool = False


class Workload:
    """The parts of a data set over workers, which have any names.

    Part p is given to worker p modulo their number, in their order. Raises ValueError for no parts or no workers.
    """

    def __init__(self, parts: int, workers: Iterable[int]) -> None:
        self.workers = list(workers)
        if parts < 1 or not self.workers:
            raise ValueError(f"{parts} parts for {len(self.workers)} workers: there must be some of both")
        self.parts = [Part(number, self.workers[number % len(self.workers)]) for number in range(parts)]

    def of(self, worker: int) -> list[Part]:
        """Give what a worker has still to do: its unfinished parts, those that it has begun first."""
        mine = [part for part in self.parts if part.worker == worker and not part.finished]
        return sorted(mine, key=lambda part: not part.begun)

    @property
    def finished(self) -> bool:
        """Whether every part is finished."""
        return all(part.finished for part in self.parts)

    def note(self, number: int, steps: int, finished: bool) -> None:
        """Note that a part's worker has done some more steps of it, or finished it."""
        part = self.parts[number]
        part.begun, part.done, part.finished = True, part.done + steps, finished

    def follow(self, workers: Sequence[int]) -> dict[int, int]:
        """Go over to these workers; give whose place newcomers have taken: newcomer -> lost worker.

        Newcomers take the places of those that are gone. Are there more of these, what they had left goes to those
        who have least to do; are there more newcomers, they take parts that were not begun from those with most.
        Raises ValueError when nobody is left.
        """
        if not workers:
            raise ValueError("no worker is left")
        gone = [worker for worker in self.workers if worker not in workers]
        come = [worker for worker in workers if worker not in self.workers]
        places = dict(zip(come, gone, strict=False))
        heirs = {lost: newcomer for newcomer, lost in places.items()}
        self.workers = list(workers)
        lost = [part for part in self.parts if part.worker in gone]
        for part in sorted(
            lost, key=lambda part: part.worker not in heirs
        ):  # places first: who has least shows then
            self._give(part, heirs[part.worker] if part.worker in heirs else self._least())
        for newcomer in come[len(gone) :]:
            while self._relieve(newcomer, 2):
                pass
        return places

    def hand_over(self) -> list[int]:
        """Let each worker that is out of work take a part from the one with most that are not begun; give the parts."""
        idle = [worker for worker in self.workers if not self.of(worker)]
        return [part.number for part in map(self._relieve, idle) if part is not None]

    def _relieve(self, worker: int, excess: int = 1) -> Part | None:
        """Give a worker a part of the one that has most to do, if that has `excess` parts more."""
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

    @staticmethod
    def _give(part: Part, worker: int) -> None:
        part.worker, part.begun = worker, False

"""The workload table: which worker has which part of the data (paper, section 3.2: the task scheduler).

Data is cut into parts (`mpips.data.read`: part p of P). The scheduler assigns every part to a worker and notes what
comes of it; a part whose worker is lost goes to the worker that has fewest.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass
class Part:
    """One part of the data: who has it, and how many examples it turned out to hold (None: not read yet)."""

    number: int
    worker: int | None = None
    examples: int | None = None


class Workload:
    """The parts of a data set over workers, which are named by their index.

    Raises ValueError for no parts or no workers.
    """

    def __init__(self, parts: int, workers: Iterable[int]) -> None:
        self.parts = [Part(number) for number in range(parts)]
        self._workers = sorted(set(workers))
        if not self.parts or not self._workers:
            raise ValueError(f"{parts} parts for {len(self._workers)} workers: there must be some of both")
        for part in self.parts:
            part.worker = self._workers[part.number % len(self._workers)]

    def of(self, worker: int) -> list[int]:
        """Give the parts of a worker, in order."""
        return [part.number for part in self.parts if part.worker == worker]

    def read(self, part: int, examples: int) -> None:
        """Note that a part was read."""
        self.parts[part].examples = examples

    def lost(self, worker: int) -> dict[int, int]:
        """Give a lost worker's parts to the others, each to the one that has fewest; give part -> its new worker.

        Raises ValueError when nobody is left.
        """
        self._workers = [each for each in self._workers if each != worker]
        if not self._workers:
            raise ValueError(f"worker {worker} was the last one")
        moved = {}
        for part in self.parts:
            if part.worker == worker:
                part.worker = min(self._workers, key=lambda each: (len(self.of(each)), each))
                part.examples = None
                moved[part.number] = part.worker
        return moved

"""Parts of the data for each worker by its measured speed (`[layout] hand_over`): a slow worker has fewer.

Every block waits for the sums of all workers, so a worker that is always slower than the others keeps them waiting. The
scheduler compares the seconds of work that the workers report; where other shares would shorten the passes by enough,
parts go from the slow to the fast ones before the next pass. Since the receivers have to read what they get, and the
givers what they keep, parts are moved once other shares would have saved as much time as the last reading has taken.
"""

from __future__ import annotations

from collections.abc import Mapping

from mpips import Workload

WAIT, LONGEST_WAIT = 2, 32
"""Least number of passes that are measured before parts are moved: twice as many after each time, up to the second."""
WORTH = 0.85
"""The largest predicted time of passes for which parts are moved, relative to the measured one."""


class Pace:
    """The seconds that the workers have worked since their parts last changed.

    >>> pace = Pace()
    >>> for passes in range(3):
    ...     pace.note({10: 3.0 * passes, 11: 1.0 * passes})
    >>> pace.plan(Workload(parts=8, workers=[10, 11]))
    [(6, 11), (4, 11)]
    """

    def __init__(self) -> None:
        self._since: dict[int, float] = {}
        self._now: dict[int, float] = {}
        self._passes, self._wait = 0, WAIT

    def note(self, worked: Mapping[int, float]) -> None:
        """Receive the seconds that each worker has worked so far, after a pass."""
        if worked.keys() != self._since.keys():
            self._since, self._passes = dict(worked), 0
        else:
            self._passes += 1
        self._now = dict(worked)

    def restart(self) -> None:
        """Measure anew: parts have been moved."""
        self._since, self._wait = {}, min(2 * self._wait, LONGEST_WAIT)

    def plan(self, table: Workload, cost: float = 0.0) -> list[tuple[int, int]]:
        """Return the parts to move, each with its new worker; none if that is not worth its `cost` in seconds.

        Each worker keeps at least one.
        """
        counts = {worker: len(table.of(worker)) for worker in self._now}
        if self._passes < self._wait or not all(counts.values()) or counts.keys() != set(table.workers):
            return []
        spent = {worker: self._now[worker] - self._since[worker] for worker in self._now}
        each = {worker: max(spent[worker], 1e-9) / counts[worker] for worker in counts}
        wanted = dict.fromkeys(counts, 1)
        for _ in range(sum(counts.values()) - len(counts)):
            wanted[min(wanted, key=lambda worker: (wanted[worker] + 1) * each[worker])] += 1
        now, then = max(spent.values()), max(wanted[worker] * each[worker] for worker in counts)
        if then > WORTH * now or now - then < cost:
            return []
        given = [
            part.number
            for worker in counts
            for part in reversed(table.of(worker)[min(wanted[worker], counts[worker]) :])
        ]
        taken = [worker for worker in counts for _ in range(wanted[worker] - counts[worker])]
        return list(zip(given, taken, strict=True))

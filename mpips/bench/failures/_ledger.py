"""The updates of a trial: pushed, acknowledged, and expected on the servers at the end.

Each push updates two keys of its own, each round of aggregated pushes four, and all update a few common hot keys. So a
lost update and one that is applied twice cannot cancel out, and a reader of a hot key can detect a stale value.
"""

from __future__ import annotations

from dataclasses import dataclass, field

EXTENT = 1 << 16
MULTIPLIER = 40503
"""Odd, so that n -> n * SPREAD % EXTENT is a permutation, which distributes keys over all shards."""
HOT = 12
"""The keys of the numbers 1 to HOT are pushed by all workers."""
SINGLES, ROUNDS = "singles", "rounds"


def key(number: int) -> int:
    """Return the key of a number."""
    return number * MULTIPLIER % EXTENT


HOT_KEYS = frozenset(key(number) for number in range(1, HOT + 1))


def push_keys(number: int) -> tuple[int, int]:
    """Return the keys that only push `number` updates."""
    return key(HOT + 1 + 2 * number), key(HOT + 2 + 2 * number)


def round_keys(number: int) -> list[int]:
    """Return the keys that only round `number` updates."""
    return [key(HOT + 1 + 4 * number + j) for j in range(4)]


@dataclass
class Ledger:
    """The pushed and the acknowledged updates."""

    pushes: list[bool] = field(default_factory=list)
    """By number: whether it was acknowledged."""
    rounds: dict[int, int] = field(default_factory=dict)
    """By number: the number of workers that push."""
    completed: set[int] = field(default_factory=set)
    """Finished rounds: the call in which they were pushed has ended on every worker."""
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)

    def compare(self, counts: dict[str, dict[int, int]]) -> None:
        """Compare with the values on the servers at the end."""
        singles, rounds = dict(counts[SINGLES]), dict(counts[ROUNDS])
        for number, acked in enumerate(self.pushes):
            for each in push_keys(number):
                self._one(f"push {number}, key {each}", singles.pop(each, 0), 1, acked)
        for number, workers in self.rounds.items():
            for each in round_keys(number):
                self._one(
                    f"round {number}, key {each}", rounds.pop(each, 0), workers, number in self.completed
                )
        self._hot(SINGLES, singles, sum(self.pushes), len(self.pushes))
        done = sum(self.rounds[number] for number in self.completed)
        # Every round updates all of them.
        for hot in range(1, HOT + 1):
            self._hot(
                f"{ROUNDS}, key {key(hot)}", {0: rounds.pop(key(hot), 0)}, done, sum(self.rounds.values())
            )
        for name, left in (
            (SINGLES, {k: n for k, n in singles.items() if k not in HOT_KEYS}),
            (ROUNDS, rounds),
        ):
            self.doubled += [f"{name}, key {k}: {n} updates that were not pushed" for k, n in left.items()]

    def _one(self, what: str, count: int, whole: int, acked: bool) -> None:
        if acked and count < whole:
            self.lost.append(f"{what}: {count} of {whole}, acknowledged")
        elif count not in (0, whole):
            (self.doubled if count > whole else self.lost).append(f"{what}: {count} of {whole}")

    def _hot(self, what: str, counts: dict[int, int], least: int, most: int) -> None:
        total = sum(count for each, count in counts.items() if what != SINGLES or each in HOT_KEYS)
        if total < least:
            self.lost.append(f"{what}: {total} updates of {least} acknowledged")
        elif total > most:
            self.doubled.append(f"{what}: {total} updates of {most} issued")

"""What is pushed in a trial of the fault campaign, what was acknowledged, and what must be there in the end.

Each push names two keys that no other push names, each round of aggregated pushes four, and all share a few hot keys.
So a lost update and a doubled one cannot make up for each other, and who reads a hot key can tell whether it goes back
in time.
"""

from __future__ import annotations

from dataclasses import dataclass, field

EXTENT = 1 << 16
SPREAD = 40503
"""Odd, so that n -> n * SPREAD % EXTENT names each key once, all over the shards."""
HOT = 12
"""Keys 1 to HOT, spread, are pushed by everyone."""
SINGLES, ROUNDS = "singles", "rounds"


def key(number: int) -> int:
    """Give the key of a number."""
    return number * SPREAD % EXTENT


HOT_KEYS = frozenset(key(number) for number in range(1, HOT + 1))


def push_keys(number: int) -> tuple[int, int]:
    """Give the keys that push `number` alone names."""
    return key(HOT + 1 + 2 * number), key(HOT + 2 + 2 * number)


def round_keys(number: int) -> list[int]:
    """Give the keys that round `number` alone names."""
    return [key(HOT + 1 + 4 * number + j) for j in range(4)]


@dataclass
class Ledger:
    """What was pushed and what was acknowledged."""

    pushes: list[bool] = field(default_factory=list)
    """By number: whether it was acknowledged."""
    rounds: dict[int, int] = field(default_factory=dict)
    """By number: how many workers were to push."""
    completed: set[int] = field(default_factory=set)
    """Rounds that are done: the call in which they were pushed has ended on every worker."""
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)

    def judge(self, counts: dict[str, dict[int, int]]) -> None:
        """Compare with what is on the servers in the end."""
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
        for hot in range(1, HOT + 1):  # every round names all of them
            self._hot(
                f"{ROUNDS}, key {key(hot)}", {0: rounds.pop(key(hot), 0)}, done, sum(self.rounds.values())
            )
        for name, left in (
            (SINGLES, {k: n for k, n in singles.items() if k not in HOT_KEYS}),
            (ROUNDS, rounds),
        ):
            self.doubled += [f"{name}, key {k}: {n} updates that nobody pushed" for k, n in left.items()]

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

"""What the workers of a trial push: every value says which pushes are in it (`mpips.history.check`).

Each push updates two keys of its own, and a common hot key; each round of aggregated pushes, four keys of its own. A
push adds another digit to a hot key than all others, and a worker another one to the keys of a round.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

import numpy as np
from numpy.typing import NDArray

from mpips.history.check import DIGITS, digit

EXTENT = 1 << 16
MULTIPLIER = 40503
"""Odd, so that n -> n * MULTIPLIER % EXTENT is a permutation, which distributes keys over all shards."""
HOT = 12
"""The keys of the numbers 1 to HOT are pushed by all workers."""
SINGLES, ROUNDS = "singles", "rounds"
PER_ROUND = 4
"""Keys of a round."""


def key(number: int) -> int:
    """Return the key of a number."""
    return number * MULTIPLIER % EXTENT


HOT_KEYS = frozenset(key(number) for number in range(1, HOT + 1))


def push_keys(number: int) -> tuple[int, int]:
    """Return the keys that only push `number` updates."""
    return key(HOT + 1 + 2 * number), key(HOT + 2 + 2 * number)


def round_keys(number: int) -> list[int]:
    """Return the keys that only round `number` updates, in order."""
    return sorted(key(HOT + 1 + PER_ROUND * number + j) for j in range(PER_ROUND))


@dataclass
class Workload:
    """The pushes of all workers so far. All ranks of a twin are in one process, and share it."""

    pushes: int = 0
    hot: Counter[int] = field(default_factory=Counter)
    """By hot key: its pushes."""

    def push(self, rng: Random) -> tuple[int, NDArray[np.uint64], NDArray[np.int64]]:
        """Return the number of the next push, its keys and its rows."""
        number, hot = self.pushes, key(1 + rng.randrange(HOT))
        self.pushes += 1
        rows = dict.fromkeys(push_keys(number), 1)
        if self.hot[hot] < DIGITS:
            rows[hot] = digit(self.hot[hot])
            self.hot[hot] += 1
        keys = sorted(rows)
        return number, np.array(keys, np.uint64), np.array([rows[each] for each in keys], np.int64)

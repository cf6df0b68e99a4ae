"""Resource use of a rank: how often its memory is read."""

from __future__ import annotations

from mpips.cluster.usage import HeldMemory


class Walk:
    """A reading of the memory that takes some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.count = seconds, 0.0, 0

    def clock(self) -> float:
        return self.now

    def __call__(self) -> dict[str, int]:
        self.now += self.seconds
        self.count += 1
        return {"pss": self.count}


def test_memory_is_read_in_a_hundredth_of_the_time() -> None:
    walk = Walk(0.25)
    held = HeldMemory(walk, walk.clock)
    assert [held(), held()] == [{"pss": 1}] * 2
    walk.now += 24.75
    assert held() == {"pss": 1}
    walk.now += 0.25
    assert [held(), held()] == [{"pss": 2}] * 2

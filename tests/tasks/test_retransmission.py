"""Retransmission: when callees are probed, what is sent again, and how much of it."""

from __future__ import annotations

from itertools import pairwise

import pytest
from tasks.test_task import call

from mpips.tasks.ahead import AHEAD
from mpips.tasks.caller import MOST_NAMED, Tasks
from mpips.tasks.retransmission import BURST, MOST, SHARE, SPREAD, Budget, Timer
from mpips.transport.message import Command, Kind, Message


def probing(now: list[float]) -> tuple[Tasks, list[Message]]:
    """Make a caller on a clock, and the list of what it sends."""
    sent: list[Message] = []
    tasks = Tasks(lambda dest, message: sent.append(message), timer=lambda: Timer(1.0, lambda: 0.0))
    tasks.now = lambda: now[0]
    return tasks, sent


def test_a_silent_callee_is_probed_less_and_less_often_and_is_sent_no_data() -> None:
    now = [0.0]
    tasks, sent = probing(now)
    tasks.submit([(1, call())])
    times = []
    for tick in range(1, 1_000):
        now[0] = 0.1 * tick
        before = len(sent)
        tasks.probe()
        times += [now[0]] * (len(sent) - before)
    assert [message.kind for message in sent] == [Kind.REQUEST] + [Kind.PROBE] * len(times)
    assert sent[-1].after == ((0, 0),)
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert gaps[:4] == pytest.approx([2, 4, 8, 16], abs=0.11) and max(gaps) < 16.2


def test_only_what_has_never_come_is_sent_again() -> None:
    now = [0.0]
    tasks, sent = probing(now)
    for _ in range(3):
        tasks.submit([(1, call())])
    tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1, after=((1, 2),)))
    assert [message.time for message in sent] == [0, 1, 2, 1] and tasks.again == {"lost": 1}
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, time=1))
    tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1, after=((1, 2),)))
    assert len(sent) == 4, "it was answered meanwhile"


def test_retransmissions_are_bounded_by_the_messages_sent() -> None:
    now = [0.0]
    tasks, sent = probing(now)
    tasks.submit([(1, call())])
    for _ in range(1_000):
        tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1, after=((0, 1),)))
    assert len(sent) - 1 <= BURST / (1 - SHARE) + 1
    now[0] = 100.0
    tasks.probe()
    now[0] = 200.0
    tasks.probe()
    tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1, after=((0, 1),)))
    assert sent[-1].kind is Kind.REQUEST, "but it always goes on"


def test_without_losses_there_are_no_probes() -> None:
    sent: list[Message] = []
    tasks = Tasks(lambda dest, message: sent.append(message))
    tasks.submit([(1, call())])
    tasks.now = lambda: 1e9
    tasks.probe()
    assert len(sent) == 1


def test_an_answer_ends_the_probes_and_the_next_request_waits_a_whole_timeout() -> None:
    now = [0.0]
    tasks, sent = probing(now)
    tasks.submit([(1, call())])
    for now[0] in (0.5, 1.6, 3.5):
        tasks.probe()
    assert [message.kind for message in sent] == [Kind.REQUEST, Kind.PROBE], (
        "one timeout after the first look"
    )
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1))
    for now[0] in (10.0, 100.0):
        tasks.probe()
    assert len(sent) == 2
    tasks.submit([(1, call())])
    for now[0] in (100.1, 101.0):
        tasks.probe()
    assert len(sent) == 3, "it is not late yet"
    now[0] = 101.2
    tasks.probe()
    assert sent[-1].kind is Kind.PROBE and sent[-1].after == ((1, 0),)


def test_only_the_addresses_that_are_late_are_probed_with_what_they_have_not_answered() -> None:
    now = [0.0]
    tasks, sent = probing(now)
    tasks.submit([(1, call()), (~2, call())])
    tasks.submit([(~2, call())])
    tasks.probe()
    now[0] = 0.9
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=7, shard=2, time=0))
    now[0] = 1.1
    tasks.probe()
    probes = [message for message in sent if message.kind is Kind.PROBE]
    assert [(each.shard, each.after) for each in probes] == [(-1, ((0, 0),))]
    now[0] = 2.0
    tasks.probe()
    probes = [message for message in sent if message.kind is Kind.PROBE]
    assert [(each.shard, each.after) for each in probes[1:]] == [(2, ((1, 0),))]


def test_a_probe_names_parts_answered_ahead_as_such_and_the_oldest_of_many() -> None:
    now = [0.0]
    tasks, sent = probing(now)
    tasks._window = 2 * MOST_NAMED
    for _ in range(MOST_NAMED + 10):
        tasks.submit([(~0, call())])
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, shard=0, time=3, acked=AHEAD))
    now[0] = 1.1
    tasks.probe()
    assert sent[-1].kind is Kind.PROBE and len(sent[-1].after) == MOST_NAMED
    assert sent[-1].after[:5] == ((3, 1), (0, 0), (1, 0), (2, 0), (4, 0))


def test_a_slow_callee_that_has_all_is_probed_less_often_and_one_that_lacks_some_is_not() -> None:
    def second_gap(*missing: tuple[int, int]) -> float:
        now = [0.0]
        tasks, sent = probing(now)
        tasks.submit([(1, call())])
        times: list[float] = []
        while len(times) < 2:
            tasks.probe()
            if sent[-1].kind is Kind.PROBE:
                times.append(now[0])
                tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1, after=missing))
                # A probe at the end of the list would be counted again.
                sent.append(call())
            now[0] += 0.01
        return times[1] - times[0]

    assert second_gap() == pytest.approx(2.0, abs=0.02)
    assert second_gap((0, 1)) == pytest.approx(1.0, abs=0.02)


def test_the_timeout_grows_with_the_round_trip_of_an_answered_probe() -> None:
    now = [0.0]
    tasks, sent = probing(now)
    tasks.submit([(1, call())])
    for now[0] in (0.0, 1.0):
        tasks.probe()
    now[0] = 2.5
    tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1))
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1))
    tasks.submit([(1, call())])
    # A round trip of 1.5 s, with a deviation of half of that.
    for now[0] in (6.9, 7.1):
        before = len(sent)
        tasks.probe()
    assert before == 3 and sent[-1].kind is Kind.PROBE


def test_what_is_sent_again_depends_on_unfinished_parts_only() -> None:
    now = [0.0]
    tasks, sent = probing(now)
    first, second = tasks.submit([(1, call())]), tasks.submit([(1, call())])
    tasks.submit([(1, call())], None, [first, second])
    assert sent[-1].after == ((0, 1), (1, 2))
    tasks.answer(Message(Kind.REPLY, Command.CALL, sender=1, time=0))
    tasks.missing(Message(Kind.MISSING, Command.CALL, sender=1, after=((2, 3),)))
    assert sent[-1].time == 2 and sent[-1].after == ((1, 2),) and sent[-1].acked == 1


# The timer.


def gaps(timer: Timer, count: int, now: float = 0.0) -> list[float]:
    """Return the seconds between a start and `count` expiries without progress."""
    assert not timer.expired(now)
    times = [now]
    for _ in range(count):
        times.append(timer._due)
        assert not timer.expired(timer._due - 1e-9) and timer.expired(times[-1])
    return [later - earlier for earlier, later in pairwise(times)]


def test_the_timeout_doubles_without_progress_up_to_its_bound() -> None:
    assert gaps(Timer(0.5, lambda: 0.0), 8) == [0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0, 8.0] and MOST == 16.0


def test_the_timeout_is_jittered_by_at_most_a_quarter() -> None:
    draws = iter([0.0, 0.5, 1.0])
    assert gaps(Timer(1.0, lambda: next(draws)), 2) == [1.0, 2.0 * (1 + 0.5 * SPREAD)] and SPREAD == 0.25


def measured(*seconds: float, first: float = 1.0) -> Timer:
    """Return a timer whose probes were answered after these seconds."""
    timer, now = Timer(first, lambda: 0.0), 0.0
    for each in seconds:
        timer.expired(now)
        now = timer._due
        assert timer.expired(now)
        timer.answered(now + each)
        timer.heard(now + each)
        now += each
    return timer


@pytest.mark.parametrize(
    ("seconds", "base"),
    [
        ((), 1.0),
        # Mean and half of it as deviation, four times.
        ((4.0,), 4.0 + 4 * 2.0),
        # RFC 6298: the deviation from the former mean, by a quarter, then the mean, by an eighth.
        ((4.0, 2.0), 3.75 + 4 * 2.0),
        ((4.0, 4.0), 4.0 + 4 * 1.5),
        # Never less than the first.
        ((0.1,), 1.0),
    ],
)
def test_the_timeout_is_the_mean_round_trip_and_four_deviations(
    seconds: tuple[float, ...], base: float
) -> None:
    assert measured(*seconds).base == pytest.approx(base)


def test_a_measured_timeout_has_the_same_bound() -> None:
    timer = measured(100.0)
    assert timer.base == 300.0
    timer.stop()
    assert gaps(timer, 2) == [MOST, MOST]


def test_an_answer_after_two_probes_is_not_measured() -> None:
    """It may be that to either of them (Karn's rule)."""
    timer = Timer(1.0, lambda: 0.0)
    gaps(timer, 2)
    timer.answered(50.0)
    assert timer.base == 1.0


def test_a_repeated_answer_is_not_measured() -> None:
    timer = Timer(1.0, lambda: 0.0)
    timer.answered(50.0)
    assert timer.base == 1.0, "no probe was sent"
    gaps(timer, 1, now=100.0)
    timer.answered(105.0)
    timer.answered(200.0)
    assert timer.base == 12.0


def test_progress_restarts_the_first_timeout() -> None:
    timer = Timer(1.0, lambda: 0.0)
    gaps(timer, 4)
    timer.heard(20.0)
    assert not timer.expired(20.9) and timer.expired(21.0) and not timer.expired(22.9) and timer.expired(23.0)


def test_a_stopped_timer_starts_when_it_is_next_asked() -> None:
    timer = Timer(1.0, lambda: 0.0)
    gaps(timer, 4)
    timer.stop()
    assert not timer.expired(1000.0), "not late at once, however long it was stopped"
    assert not timer.expired(1000.9) and timer.expired(1001.0)


# The budget.


def spent(budget: Budget) -> int:
    """Return how many messages may be sent again now."""
    count = 0
    while budget.spend():
        count += 1
    return count


def test_a_budget_is_a_burst_and_a_share_of_what_is_sent() -> None:
    budget = Budget()
    assert spent(budget) == BURST
    for _ in range(round(5 / SHARE) + 1):
        budget.earn()
    assert spent(budget) == 5


def test_a_budget_saves_up_no_more_than_a_burst() -> None:
    budget = Budget()
    for _ in range(10_000):
        budget.earn()
    assert spent(budget) == BURST


def test_an_expired_timer_may_always_send_one_message_again() -> None:
    budget = Budget()
    spent(budget)
    budget.earn(1.0)
    assert spent(budget) == 1

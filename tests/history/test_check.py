"""The checker of histories: each promise that is broken is named, and a history that keeps all has no violation."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpips.history.check import DIGITS, MOST, acknowledged, check, digit, unended
from mpips.history.events import (
    Answered,
    Called,
    Completed,
    Concluded,
    Event,
    Final,
    Issued,
    Part,
    Viewed,
    from_line,
    to_line,
)
from mpips.transport.message import NO_ROUND

KEY = 7


def push(rank: int, number: int, value: int, *, after: tuple[int, ...] = ()) -> Issued:
    return Issued(rank, number, "w", (KEY,), (value,), False, NO_ROUND, after, (), (0,))


def pull(rank: int, number: int, *, after: tuple[int, ...] = ()) -> Issued:
    return Issued(rank, number, "w", (KEY,), None, True, NO_ROUND, after, (), (0,))


def part(rank: int, number: int, place: int, round_: int = 0, pulls: bool = False) -> Issued:
    """A worker's part of a round of the workers 1 and 2."""
    return Issued(rank, number, "r", (KEY,), (digit(place),), pulls, round_, (), (1, 2), (0,))


def good(rank: int, number: int, *rows: int, version: int = -1, server: int = 5, epoch: int = 0) -> Answered:
    return Answered(rank, number, True, rows or None, (Part(0, server, epoch, version),))


def view(rank: int, epoch: int, leader: int = 0, primary: int = 5, published: bool = False) -> Viewed:
    return Viewed(rank, epoch, leader, (primary,), (1, 2), published)


def end(value: int, vector: str = "w") -> Final:
    return Final(0, vector, (KEY,), (value,))


A, B = digit(0), digit(1)
GOOD: list[Event] = [
    view(0, 1, published=True),
    push(1, 0, A),
    view(1, 1),
    good(1, 0, epoch=1),
    push(2, 0, B),
    pull(1, 1, after=(0,)),
    good(1, 1, A, version=1, epoch=1),
    good(2, 0, epoch=1),
    part(1, 2, 0),
    part(2, 1, 1, pulls=True),
    good(2, 1, A + B, epoch=1),
    good(1, 2, epoch=1),
    Completed(0, "r", (0,)),
    Called(1, 0, 3),
    end(A + B),
    end(A + B, "r"),
    Concluded(0),
]


def promises(*events: Event) -> list[str]:
    return [each.promise for each in check(events)]


def test_a_history_that_keeps_all_promises() -> None:
    assert check(GOOD) == []
    assert acknowledged(GOOD) == 4 and unended(GOOD) == []


@pytest.mark.parametrize(
    ("promise", "events"),
    [
        ("exactly once", [push(1, 0, A), pull(2, 0), good(2, 0, 2 * A)]),
        ("exactly once", [pull(2, 0), good(2, 0, B), push(1, 0, A), push(1, 1, B)]),
        ("exactly once", [push(1, 0, A), end(2 * A)]),
        ("exactly once", [push(1, 0, A), Final(0, "w", (8,), (1,))]),
        ("exactly once", [push(1, 0, A), end(-1)]),
        ("durable", [push(1, 0, A), good(1, 0), end(0)]),
        ("durable", [push(1, 0, A), good(1, 0), Final(0, "w", (), ())]),
        ("durable", [push(1, 0, A), pull(2, 0), good(2, 0, A), end(0)]),
        ("durable", [part(1, 0, 0), part(2, 0, 1), Completed(0, "r", (0,)), end(0, "r")]),
        ("rounds", [part(1, 0, 0), part(2, 0, 1), end(A, "r")]),
        ("rounds", [part(1, 0, 0), end(A, "r")]),
        ("rounds", [part(1, 0, 0), good(1, 0)]),
        ("declared order", [push(1, 0, A), pull(1, 1, after=(0,)), good(1, 1, 0)]),
        (
            "declared order",
            [push(1, 0, A)._replace(pulls=True), good(1, 0, 0)],
        ),
        ("no stale pull", [push(1, 0, A), good(1, 0), pull(2, 0), good(2, 0, 0)]),
        ("no stale pull", [push(1, 0, A), pull(2, 0), good(2, 0, A), pull(3, 0), good(3, 0, 0), end(A)]),
        ("no stale pull", [pull(1, 0), good(1, 0, version=4), pull(2, 0), good(2, 0, version=3)]),
        ("views", [view(1, 2), view(1, 1)]),
        ("views", [view(1, 2), view(1, 2)]),
        ("views", [view(1, 2), view(2, 2, leader=3)]),
        ("views", [view(1, 2), view(2, 2, primary=6)]),
        ("views", [view(1, 2, leader=0, published=True)]),
        ("primaries", [pull(1, 0), good(1, 0, epoch=3, server=5), pull(2, 0), good(2, 0, epoch=3, server=6)]),
        ("primaries", [view(1, 3, primary=6), pull(1, 0), good(1, 0, epoch=3, server=5)]),
        ("calls", [Called(1, 0, 3), Called(1, 0, 3)]),
        ("result", [Concluded(0), Concluded(1)]),
    ],
)
def test_what_is_broken_is_named(promise: str, events: list[Event]) -> None:
    assert promises(*events) == [promise]


def test_a_pull_may_miss_what_was_acknowledged_while_it_was_under_way() -> None:
    assert check([push(1, 0, A), pull(2, 0), good(1, 0), good(2, 0, 0), end(A)]) == []


def test_before_is_by_one_clock() -> None:
    events = [push(1, 0, A), good(1, 0), pull(2, 0), good(2, 0, 0), end(A)]
    assert [each.promise for each in check(events, {1: "h1", 2: "h1"})] == ["no stale pull"]
    assert check(events, {1: "h1", 2: "h2"}) == []
    # The end is after all.
    assert [each.promise for each in check([*events[:-1], end(0)], {1: "h1", 2: "h2"})] == ["durable"]


def test_an_unanswered_push_and_one_that_failed_may_be_there_or_not() -> None:
    for value in (0, A):
        assert check([push(1, 0, A), end(value)]) == []
        assert check([push(1, 0, A), Answered(1, 0, False, None, ()), end(value)]) == []


def test_values_that_do_not_say_what_is_in_them_are_not_judged() -> None:
    assert check([push(1, 0, 1), good(1, 0), push(1, 1, 1), good(1, 1), end(5)]) == []
    assert check([push(1, 0, 3), good(1, 0), end(0)]) == []


@pytest.mark.parametrize("event", GOOD)
def test_events_are_lines_of_json(event: Event) -> None:
    assert from_line(json.loads(json.dumps(to_line(event, 2.5)))) == (2.5, event)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("pqrl"), st.integers(0, 3)), max_size=60), st.randoms())
def test_a_register_that_keeps_its_promises_is_never_accused(
    steps: list[tuple[str, int]], rng: object
) -> None:
    """Pushes and pulls take effect at any moment between their events; `l` loses the answer."""
    value, pushes, numbers = 0, 0, [0] * 4
    pending: list[tuple[Issued, int | None]] = []
    events: list[Event] = []
    for step, rank in steps:
        if step == "p" and pushes < DIGITS:
            pending.append((push(rank, numbers[rank], digit(pushes)), None))
            pushes, numbers[rank] = pushes + 1, numbers[rank] + 1
            events.append(pending[-1][0])
        elif step == "q":
            pending.append((pull(rank, numbers[rank]), None))
            numbers[rank] += 1
            events.append(pending[-1][0])
        elif pending:
            op, _ = pending.pop(rng.randrange(len(pending)))  # type: ignore[attr-defined]
            if op.rows is not None:
                value += op.rows[0]
            if step == "r":
                events.append(good(op.rank, op.number, *(() if op.rows else (value,))))
    assert check([*events, end(value)]) == []
    if acknowledged(events):
        assert {"durable"} <= {each.promise for each in check([*events, end(0)])}


@pytest.mark.parametrize(
    "line",
    [
        ["Issued", 1.0, 1, 0, "w", 5, [1], True, -1, [], [], [0]],
        ["Issued", 1.0, 1, 0, "w", [7, 8], [1], True, -1, [], [], [0]],
        ["Issued", 1.0, 1, 0, "w", [7], ["a"], True, -1, [], [], [0]],
        ["Issued", 1.0, {}, 0, "w", [[7]], [1], True, -1, [], [], [0]],
        ["Answered", 1.0, 1, 0, True, [1.5], []],
        ["Answered", 1.0, 1, 0, True, [1], [["a", 2, 3, "b"]]],
        ["Viewed", 1.0, 0, 3, 0, 5, [1], True],
        ["Final", 1.0, 0, "w", [7], []],
        ["Called", 1.0, {}, 0, 1],
        ["Concluded", "now", 0],
        ["Concluded", 10**400, 0],
        ["Concluded", 1.0, 0, 0],
    ],
)
def test_lines_of_other_types_are_no_events(line: list[Any]) -> None:
    with pytest.raises((ValueError, TypeError, KeyError)):
        from_line(line)


def test_answers_that_do_not_fit_are_violations() -> None:
    two = Answered(1, 0, True, (A, A), (Part(0, 5, 0, 1),))
    assert [each.promise for each in check([pull(1, 0), two])] == ["exactly once"]
    again = [push(1, 0, A), good(1, 0), pull(1, 1), good(1, 1, A), good(1, 1, A)]
    assert [each.text for each in check(again)] == ["rank 1, operation 1 was answered twice"]
    far = Answered(1, 0, True, None, (Part(9, 5, 1, -1),))
    assert [each.promise for each in check([view(1, 1), push(1, 0, A), far])] == ["primaries"]
    # A pull of which the file says that it pulls nothing.
    odd = pull(1, 0)._replace(pulls=False)
    assert check([odd, good(1, 0, A)]) == []


def test_a_check_ends_with_many_violations_and_in_linear_time() -> None:
    assert len(check([Concluded(0)] * 100_000)) == MOST
    keys = tuple(range(3000))
    # Of keys of which nothing is known to be durable but that they are, and of many ends.
    pushed = Issued(1, 0, "w", keys, (A,) * len(keys), False, NO_ROUND, (), (), (0,))
    pulled = Issued(1, 1, "w", keys, None, True, NO_ROUND, (), (), (0,))
    read = Answered(1, 1, True, (0,) * len(keys), ())
    assert check([pushed, pulled, read, *[Final(0, "w", (), ())] * 30_000]) == []


def test_an_answer_for_a_shard_that_the_view_of_its_taking_has_not_is_a_violation() -> None:
    for shard in (5, -1):
        answer = Answered(1, 0, True, None, (Part(shard, 5, 9, 0, 1),))
        found = check([view(1, 1), pull(1, 0)._replace(shards=(shard,)), answer])
        assert [each.promise for each in found] == ["primaries"]

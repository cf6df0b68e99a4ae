"""Small worlds: all orders of events are right, and what breaks a promise is found."""

from __future__ import annotations

import pytest
from history.mutations import MUTATIONS, applied

from mpips.bench.worlds import worlds
from mpips.bench.worlds._search import replayed, sample, search, shortest
from mpips.bench.worlds._settings import WORLDS, world
from mpips.bench.worlds._world import World

SEED, ORDERS = 1, 8
SCHEDULER, PRIMARY, COPY, WORKER, SPARE = range(5)


def check(made: World, found: worlds.Found) -> None:
    """Check that nothing is violated; else show by which events."""
    for violation in found.violations:
        events = "\n".join(map(made.text, violation.steps))
        raise AssertionError(f"{violation.what}, by\n{events}")


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    ("name", "kinds", "victims", "in_order"),
    [
        ("push", (), (), False),
        ("rounds", (), (), True),
        ("push", ("lose",), (), False),
        pytest.param("pushes", (), (), False, marks=pytest.mark.long),
        pytest.param("rounds", (), (), False, marks=pytest.mark.long),
        pytest.param("push", ("kill",), (WORKER,), True, marks=pytest.mark.long),
        pytest.param("push", ("kill",), (SPARE,), True, marks=pytest.mark.long),
    ],
)
def test_orders_that_are_left_out_lead_to_no_other_states(
    name: str, kinds: tuple[str, ...], victims: tuple[int, ...], in_order: bool
) -> None:
    made = world(name, len(kinds), kinds, in_order, victims)
    all_orders, found = search(made, reduces=False), search(made)
    check(made, all_orders)
    check(made, found)
    assert found.complete and all_orders.complete
    # In which time passes, or the run ends.
    assert found.quiet == all_orders.quiet
    assert found.states < all_orders.states and found.orders < all_orders.orders


def test_all_orders_with_a_lost_message_are_right() -> None:
    made = world("push", 1, ("lose",))
    found = search(made, reduces=False)
    check(made, found)
    # Of the events, each of which real code has executed once.
    assert found.complete and found.orders > 1_000_000 > found.executed


@pytest.mark.parametrize(
    ("mutation", "kinds", "victims", "what"),
    [
        ("dependencies", (), (), "stale"),
        ("keep replies", ("lose",), (), "stale"),
        ("probes", ("lose",), (), "hangs"),
    ],
)
def test_what_breaks_a_promise_is_found_with_and_without_the_reduction(
    mutation: str, kinds: tuple[str, ...], victims: tuple[int, ...], what: str
) -> None:
    for reduces in (True, False):
        with applied(MUTATIONS[mutation]):
            found = search(world("push", len(kinds), kinds, False, victims), reduces=reduces)
        (violation,) = found.violations
        assert what in violation.what


@pytest.mark.long
@pytest.mark.parametrize(
    ("kinds", "victims"),
    [
        (("lose", "lose"), ()),
        (("kill",), (SCHEDULER,)),
        (("kill",), (COPY,)),
        (("kill",), (WORKER,)),
        (("kill",), (SPARE,)),
        (("pause",), (WORKER,)),
        (("pause",), (SPARE,)),
    ],
)
def test_all_orders_with_these_faults_are_right(kinds: tuple[str, ...], victims: tuple[int, ...]) -> None:
    made = world("push", len(kinds), kinds, True, victims)
    found = search(made)
    check(made, found)
    assert found.complete


@pytest.mark.drawn(2)
@pytest.mark.parametrize("name", WORLDS)
def test_random_orders_with_two_faults_are_right(name: str) -> None:
    made = world(name, 2, worlds.KINDS)
    found = sample(made, SEED, most=ORDERS)
    check(made, found)
    assert found.ends == ORDERS


def test_the_searches_meet_the_same_states() -> None:
    found, other = search(world("push", 0, ()), reduces=False), sample(world("push", 0, ()), SEED)
    assert found.complete and other.complete and found.states == other.states


@pytest.mark.drawn(2)
@pytest.mark.parametrize(
    ("mutation", "name", "kind"),
    [
        ("acknowledge early", "push", "kill"),
        pytest.param("duplicates", "push", "kill", marks=pytest.mark.long),
        pytest.param("resend changes", "push", "kill", marks=pytest.mark.long),
        pytest.param("redirect", "push", "kill", marks=pytest.mark.long),
        ("second stage", "join", "kill"),
    ],
)
def test_what_breaks_a_promise_is_found(mutation: str, name: str, kind: str) -> None:
    with applied(MUTATIONS[mutation]):
        made = world(name, 1, (kind,))
        found = sample(made, SEED, most=1000)
        (violation,) = found.violations
        steps = shortest(made, len(violation.steps), 3000) or violation.steps
        # The events say in a new world what happens, as a test of a fault that is mended does.
        assert replayed(world(name, 1, (kind,)), [made.text(step) for step in steps])
    print(f"{mutation}: {violation.what}, after {found.ends} orders; {len(steps)} events")


def test_a_state_is_the_same_when_it_is_made_again() -> None:
    made = world("pushes", 1, ("kill",))
    sample(made, SEED, most=5)
    ranks = made.ranks
    for state in range(0, len(ranks), 11):
        assert ranks._numbers.get(ranks._again(state).digest()) == state, ranks._before[state]


def test_events_that_cannot_happen_are_refused() -> None:
    with pytest.raises(ValueError, match=r"kill rank 0 cannot happen, but receive rank 1 \[REQUEST"):
        replayed(world("push", 0, ()), ["kill rank 0"])


def test_the_command_prints_its_figures(capsys: pytest.CaptureFixture[str]) -> None:
    assert worlds.main(["--worlds", "push", "--seconds", "0.3"]) == 0
    shown = capsys.readouterr().out
    assert "push" in shown and "violations: 0" in shown

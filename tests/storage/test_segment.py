"""Segments, compared with dicts."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from storage.test_aggregate import applied, u64

from mpips.errors import LayoutError, ProtocolError
from mpips.ranges import ALL, KeyRange, coalesce
from mpips.storage import updates as update_module
from mpips.storage.aggregate import Aggregator
from mpips.storage.segment import Segment
from mpips.storage.updates import Column, VectorSpec, update

key = st.one_of(st.integers(0, 60), st.integers(2**64 - 40, 2**64 - 1), st.integers(0, 2**64 - 1))
keys = st.sets(key, max_size=40).map(sorted)


class SegmentAgainstDict(RuleBasedStateMachine):
    """Pushes, pulls and exports of a sparse segment, and of its copies, are those of a dict."""

    @initialize(width=st.integers(1, 3), dtype=st.sampled_from(["int32", "int64", "float64"]))
    def start(self, width: int, dtype: str) -> None:
        self.spec = VectorSpec("w", dtype, width)
        self.segment = Segment(self.spec)
        self.model: dict[int, Any] = {}

    def row(self, k: int, by: int) -> Any:
        return np.array([(k % 7 + j + by) % 5 - 2 for j in range(self.spec.width)], self.spec.dtype)

    @rule(pushed=keys, by=st.integers(0, 9), reply=st.booleans())
    def push(self, pushed: list[int], by: int, reply: bool) -> None:
        rows = np.array([self.row(k, by) for k in pushed], self.spec.dtype).reshape(-1, self.spec.width)
        answer = self.segment.push(u64(pushed), rows, reply)
        for k, row in zip(pushed, rows, strict=True):
            self.model[k] = self.model.get(k, 0) + row
        if reply:
            assert answer is not None
            assert answer.tolist() == [self.model[k].tolist() for k in pushed]
        else:
            assert answer is None

    @rule(pulled=keys)
    def pull(self, pulled: list[int]) -> None:
        zero = np.zeros(self.spec.width)
        expected = [self.model.get(k, zero).tolist() for k in pulled]
        assert self.segment.pull(u64(pulled)).tolist() == expected
        out = np.full((len(pulled), self.spec.width), 9, self.spec.dtype)
        assert self.segment.pull(u64(pulled), out).tolist() == expected
        assert out.tolist() == expected

    @rule(cut=key)
    def move_to_new_segments(self, cut: int) -> None:
        parts = [KeyRange(0, cut), KeyRange(cut, 2**64)]
        moved = Segment(self.spec)
        for part in parts:
            moved.import_state(self.segment.export_state(part))
        self.segment = moved

    @rule(begin=key, end=key)
    def items(self, begin: int, end: int) -> None:
        found, rows = self.segment.items(KeyRange(begin, end))
        assert found.tolist() == sorted(k for k in self.model if begin <= k < end)
        assert rows.tolist() == [self.model[k].tolist() for k in found.tolist()]

    @invariant()
    def export(self) -> None:
        found, rows = self.segment.export()
        assert found.tolist() == sorted(k for k, row in self.model.items() if row.any())
        assert rows.tolist() == [self.model[k].tolist() for k in found.tolist()]
        assert len(self.segment) == len(self.model) <= max(self.segment.capacity, 0)


SegmentAgainstDict.TestCase.settings = settings(max_examples=40, stateful_step_count=15, deadline=None)
TestSegmentAgainstDict = SegmentAgainstDict.TestCase


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1, max_size=5), st.data())
@settings(deadline=None)
def test_dense_segment_of_several_ranges_is_an_array(bounds: list[tuple[int, int]], data: Any) -> None:
    """A range push touches the owned keys of the range, and key by key pushes find the same rows."""
    ranges = [KeyRange(min(b), max(b) + 1) for b in bounds]
    owned = sorted({k for piece in ranges for k in range(*piece)})
    segment = Segment(VectorSpec("w", "int64", extent=90, dense=True), ranges)
    owned = [k for k in owned if k < 90]
    assert segment.ranges == coalesce(KeyRange(r.begin, min(r.end, 90)) for r in ranges)
    array = np.zeros(100, int)
    for step in range(3):
        begin, end = sorted(data.draw(st.tuples(st.integers(0, 100), st.integers(0, 100))))
        touched = [k for k in owned if begin <= k < end]
        rows = np.arange(len(touched)) + 10**step
        segment.push(KeyRange(begin, end), rows)
        array[touched] += rows
        assert segment.pull(KeyRange(begin, end))[:, 0].tolist() == array[touched].tolist()
        segment.push(u64(touched), rows)
        array[touched] += rows
    assert segment.pull(u64(range(100)))[:, 0].tolist() == array.tolist()
    found, values = segment.items()
    assert found.tolist() == owned
    assert values[:, 0].tolist() == array[owned].tolist()


def test_dense_push_of_a_key_elsewhere_is_refused() -> None:
    segment = Segment(VectorSpec("w", extent=100, dense=True), [KeyRange(10, 20)])
    with pytest.raises(ProtocolError, match="key 20 is not owned"):
        segment.push(u64([10, 20]), np.ones((2, 1)))
    assert not segment.pull(KeyRange(0, 100)).any()


def test_too_large_segments_are_refused_before_they_are_built() -> None:
    with pytest.raises(LayoutError, match="use more servers"):
        Segment(VectorSpec("w", extent=2**39, dense=True))
    with pytest.raises(ProtocolError, match="too wide"):
        Segment(VectorSpec("w")).pull(ALL)


def test_rows_of_the_wrong_shape_or_type_are_refused() -> None:
    segment = Segment(VectorSpec("w", width=2))
    for rows in (np.ones((2, 1)), np.ones((3, 2)), np.ones((2, 2), np.float32)):
        with pytest.raises(ProtocolError, match="expected 2 x 2 float64"):
            segment.push(u64([1, 2]), rows)
    with pytest.raises(TypeError, match="out must be 2 x 2 float64"):
        segment.pull(u64([1, 2]), np.ones((2, 2), np.float32))


def test_read_only_rows_of_a_message_are_taken() -> None:
    segment = Segment(VectorSpec("w", "float32"))
    message = b"x" + np.arange(4, dtype=np.float32).tobytes()
    segment.push(u64([5, 6, 7, 8]), np.frombuffer(message, np.float32, offset=1))
    assert segment.pull(u64([8, 5]))[:, 0].tolist() == [3, 0]


def test_pulled_rows_do_not_change_under_the_sender() -> None:
    segment = Segment(VectorSpec("w", extent=8, dense=True))
    pulled = segment.pull(KeyRange(0, 8))
    segment.push(KeyRange(0, 8), np.ones(8))
    assert not pulled.any()


class Times:
    def __init__(self) -> None:
        self.seen: list[tuple[KeyRange, int, int]] = []

    def set(self, key_range: KeyRange, node: int, time: int, /) -> None:
        self.seen.append((key_range, node, time))


def test_the_clock_advances_on_owned_keys_only() -> None:
    segment = Segment(VectorSpec("w"), [KeyRange(0, 10), KeyRange(20, 30)])
    segment.advance(ALL, 3, 1)  # no clock: nothing to note
    clock = segment.clock = Times()
    segment.advance(KeyRange(5, 25), 3, 7)
    assert clock.seen == [(KeyRange(5, 10), 3, 7), (KeyRange(20, 25), 3, 7)]


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(update_module, "_updates", dict(update_module._updates))
    return


@pytest.mark.usefixtures("registry")
def test_an_update_that_raises_leaves_the_segment_serving() -> None:
    @update("touchy", columns=lambda spec: {"n": Column("int32", 1, 7)})
    def touchy(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> Any:
        if (rows < 0).any():
            raise ArithmeticError("negative")
        values[slots] += rows
        return rows * 2

    segment = Segment(VectorSpec("w", update="touchy", aggregate=True))
    aggregator = Aggregator(segment, [0, 1])
    for sign in (1, -1, 1):
        slots = [segment.resolve(u64(k), create=True) for k in ([1, 5], [3, 5])]
        aggregator.add(sign, 1, slots[1], np.ones((2, 1)))
        if sign < 0:
            with pytest.raises(ArithmeticError):
                applied(segment, aggregator.add(sign, 0, slots[0], np.full((2, 1), -2.0)))
        else:
            done = applied(segment, aggregator.add(sign, 0, slots[0], np.ones((2, 1))), reply=True)
    assert aggregator.pending() == {}
    assert segment.pull(u64([1, 3, 5]))[:, 0].tolist() == [2, 2, 4]
    assert segment.state["n"][:3, 0].tolist() == [7, 7, 7]
    assert [np.ravel(done[w]).tolist() for w in (0, 1)] == [[2, 4], [2, 4]]


# Export.


def test_export_leaves_out_zeros_of_either_sign_and_keeps_nan() -> None:
    segment = Segment(VectorSpec("w", width=2))
    segment.push(u64([1, 2, 3, 4]), np.array([[0.0, -0.0], [0, 1], [np.nan, 0], [-0.0, -0.0]]))
    assert segment.export()[0].tolist() == [2, 3]
    assert segment.items()[0].tolist() == [1, 2, 3, 4]


# Invalid arguments and answers.


@given(st.sampled_from([True, False]), st.integers(0, 100), st.integers(0, 100), st.integers(0, 60))
def test_a_range_is_cut_after_so_many_slots(dense: bool, begin: int, end: int, count: int) -> None:
    segment = Segment(VectorSpec("v", extent=90, dense=dense), [KeyRange(5, 20), KeyRange(30, 95)])
    if not dense:
        segment.push(u64([7, 8, 19, 30, 60, 89]), np.ones((6, 1)))
    wanted = KeyRange(min(begin, end), end)
    held = segment.select(wanted)[0].tolist()
    cut = segment.cut(wanted, count)
    assert segment.select(KeyRange(wanted.begin, cut))[0].tolist() == held[:count]
    assert (cut == wanted.end) == (len(held) <= count)


@pytest.mark.parametrize("stray", [[70], [5, 70], [2**63], [49, 50], [5, 20, 45]])
def test_keys_that_are_not_owned_are_refused(stray: list[int]) -> None:
    segment = Segment(VectorSpec("w", extent=100), [KeyRange(0, 10), KeyRange(40, 50)])
    with pytest.raises(ProtocolError, match="not all owned by this server"):
        segment.push(u64(stray), np.ones((len(stray), 1)))
    assert len(segment) == 0
    segment.push(u64([0, 9, 40, 49]), np.ones((4, 1)))
    segment.push(u64([]), np.ones((0, 1)))
    assert len(segment) == 4
    assert segment.pull(u64(stray))[:, 0].tolist() == [float(k in (0, 9, 40, 49)) for k in stray]


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("answer", ["values", "state"])
@pytest.mark.parametrize("aggregate", [False, True])
def test_an_answer_of_the_segments_own_rows_is_a_copy(answer: str, aggregate: bool) -> None:
    def both(values: Any, state: Any, rows: Any, settings: Any) -> Any:
        values += rows
        state["n"] += 1
        return values if answer == "values" else state["n"]

    @update("its own", columns=lambda spec: {"n": Column("float64")}, apply_range=both)
    def apply(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> Any:
        return both(values, state, rows, settings)

    spec = VectorSpec("w", extent=50, update="its own", dense=True, aggregate=aggregate)
    segment, rows = Segment(spec), np.ones((50, 1))
    every = KeyRange(0, 50)

    def push(round_: int) -> Any:
        if not aggregate:
            return segment.push(every, rows, reply=True)
        done = Aggregator(segment, [3]).add(round_, 3, segment.resolve(every, create=True), rows)
        return applied(segment, done, reply=True)[3]

    first = push(0)
    push(1)
    assert first.tolist() == [[1.0]] * 50
    assert segment.values[:50].tolist() == [[2.0]] * 50


# Slots that are one run, and growth.


def test_a_first_push_of_sparse_keys_is_one_run_of_rows() -> None:
    segment = Segment(VectorSpec("w", "float32"), expect=10)
    first, second = u64(range(0, 9000, 3)), u64(range(1, 9000, 3))
    assert segment.resolve(first, create=True) == slice(0, 3000) == segment.resolve(first)
    assert segment.resolve(second, create=True) == slice(3000, 6000)
    segment.push(first, np.ones(3000, np.float32))
    segment.push(second, np.full(3000, 2, np.float32))
    out = np.empty(3000, np.float32)
    assert np.shares_memory(segment.pull_slots(slice(3000, 6000), out), out) and (out == 2).all()
    both = u64(sorted([*first.tolist(), *second.tolist()]))
    slots = segment.resolve(both)
    assert isinstance(slots, np.ndarray) and slots.dtype == np.int32
    assert segment.push_slots(slots, np.ones(6000, np.float32)) is None
    assert segment.pull(u64([0, 1, 2, 3]))[:, 0].tolist() == [2, 3, 0, 2]
    assert segment.slots_of(first).tolist() == list(range(3000))
    assert segment.slots_of(first[::-1].copy()).tolist() == list(range(2999, -1, -1))


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize("held", [False, True])
def test_rows_of_all_columns_stay_while_a_segment_grows(held: bool) -> None:
    """Narrow and wide columns fill up at different times, and somebody may still look at the old ones."""

    @update("counting", columns=lambda spec: {"n": Column("int8", 1, 3), "sums": Column("float64", 4)})
    def counting(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> None:
        values[slots] += rows
        state["n"][slots] += 1
        state["sums"][slots] += rows

    segment = Segment(VectorSpec("w", "float32", update="counting"))
    views, total = [], 0
    for step in range(1, 7):
        fresh = u64(range(step << 40, (step << 40) + 30_000 * step))
        segment.push(fresh, np.full(len(fresh), step, np.float32))
        total += len(fresh)
        assert len(segment) == total <= segment.capacity
        assert all(len(column) >= segment.capacity for column in (segment.values, *segment.state.values()))
        if held:
            views.append((step, segment.values[total - 5 : total]))
    keys, rows = segment.items()
    assert (rows[:, 0] == keys >> np.uint64(40)).all()
    assert (segment.state["n"][:total] == 4).all() and (segment.state["sums"][:total] == rows).all()
    assert (segment.state["n"][total : segment.capacity] == 3).all()
    assert all((view == step).all() for step, view in views)


ANSWERS: dict[str, Any] = {
    "one": lambda rows: rows[:1], "fewer": lambda rows: rows[1:], "more": lambda rows: np.vstack([rows, rows]),
    "half": lambda rows: rows.astype(np.float16), "list": lambda rows: rows.tolist(), "number": lambda rows: 3.0,
    "cube": lambda rows: rows[:, :, None],
}  # fmt: skip


@pytest.mark.parametrize("name", ANSWERS)
@pytest.mark.parametrize("dense", [False, True])
def test_an_update_or_read_without_a_row_for_each_key_fails(name: str, dense: bool) -> None:
    made = ANSWERS[name]
    answers = update_module.Update("answers", lambda values, state, slots, rows, settings: made(rows))
    reads = update_module.Update(
        "reads", lambda *given: None, read=lambda values, state, slots: made(values[slots])
    )
    spec = VectorSpec("w", extent=9, dense=dense)
    three, rows = u64([1, 3, 5]), np.ones((3, 1))
    with pytest.raises(ProtocolError, match=r"the function of update 'answers' returned .* for 3 rows"):
        Segment(spec, update=answers).push(three, rows, reply=True)
    segment = Segment(spec, update=reads)
    segment.push(three, rows)
    with pytest.raises(ProtocolError, match=r"read of update 'reads' returned .* for 3 rows"):
        segment.pull(three)


@pytest.mark.parametrize("init", [0.0, 2.0])
@pytest.mark.parametrize("width", [1, 2])
def test_a_key_that_was_never_pushed_is_read_as_a_new_one_is(init: float, width: int) -> None:
    counted = update_module.Update(
        "counted", lambda *given: None, lambda spec: {"n": Column("int64", 1, 7)},
        read=lambda values, state, slots: values[slots] + state["n"][slots],
    )  # fmt: skip
    wanted = u64([1, 3, 5])
    for pushed in ([], [3], [1, 3, 5]):
        found = []
        for dense in (False, True):
            segment = Segment(VectorSpec("w", width=width, extent=9, init=init, dense=dense), update=counted)
            segment.push(u64(pushed), np.zeros((len(pushed), width)))
            found.append(segment.pull(wanted).tolist())
        assert found == [[[init + 7.0] * width] * 3] * 2


@pytest.mark.parametrize("column", [Column("int64", 1), Column("float64", 2), Column("float32", 1)])
def test_rows_of_state_columns_of_another_type_or_width_are_not_converted(column: Column) -> None:
    def made(of: Column) -> Segment:
        return Segment(
            VectorSpec("w"), update=update_module.Update("u", lambda *given: None, lambda spec: {"n": of})
        )

    old = made(Column("float64", 1))
    old.push(u64([1, 3]), np.ones((2, 1)))
    made(Column("float64", 1)).import_state(old.export_state(ALL))
    with pytest.raises(ProtocolError, match="n of float64 of width 1, expected"):
        made(column).import_state(old.export_state(ALL))


FILLS: list[Any] = [
    ("int64", 1, 1.5), ("int8", 1, 300), ("int32", 1, 2**40), ("int64", 1, np.nan), ("float32", 1, 1e300),
    ("float64", 1, None), ("float64", 1, "1"), ("float64", 0, 0), ("float64", -1, 0), ("float64", 2.0, 0),
]  # fmt: skip


@pytest.mark.parametrize("column", FILLS)
def test_a_state_column_that_cannot_hold_its_fill_is_refused(column: Any) -> None:
    def made(*column: Any) -> Segment:
        columns = update_module.Update("u", lambda *given: None, lambda spec: {"n": Column(*column)})
        return Segment(VectorSpec("w", extent=2, dense=True), update=columns)

    with pytest.raises(LayoutError, match=r"state column 'n': width .* and fill"):
        made(*column)
    for dtype, fill in (
        ("int64", 2.0),
        ("int8", -128),
        ("float32", np.inf),
        ("float64", 0.1),
        ("int32", np.int8(3)),
    ):
        assert (made(dtype, 1, fill).state["n"] == fill).all()

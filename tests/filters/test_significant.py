"""The significantly-modified filter, compared with a plain model of its rule: no change is lost."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpips import typed
from mpips.errors import FilterError, InputError
from mpips.filters.filter import About, Coder, Content, State, known
from mpips.filters.random_skip import RandomSkip, random_skip
from mpips.filters.significant import Significant, significant
from mpips.keys import ascend, from_pairs
from mpips.ranges import ALL, KeyRange
from mpips.transport.message import Command

DTYPES = ["<f4", "<f8", "<i4", "<i8"]
EDGES = [0, 1, 2**63 - 1, 2**63, 2**64 - 2, 2**64 - 1]


def about(**changes: Any) -> About:
    return About("w", Command.PUSH, ALL, True, 7, 3, 1, 5)._replace(**changes)


def keys_of(*keys: int) -> NDArray[np.uint64]:
    return np.array(keys, np.uint64)


def column(*values: float, dtype: str = "<f4") -> NDArray[Any]:
    return np.array(values, dtype)[:, None]


def frozen(content: Content) -> Content:
    """Make the arrays that a filter gets read-only."""
    for array in (content.keys, content.values):
        if array is not None:
            array.flags.writeable = False
    return content


class Push(NamedTuple):
    rows: dict[int, tuple[float, ...]]
    flush: bool


@st.composite
def pushes(draw: st.DrawFn, dtype: str, width: int) -> list[Push]:
    """Values are eighths, so that their sums are exact in float32 too; integers go to both ends."""
    number: st.SearchStrategy[float] = st.integers(-40, 40).map(lambda i: i / 8)
    if dtype[1] == "i":
        limits = np.iinfo(dtype)
        number = st.one_of(st.integers(-5, 5), st.sampled_from([limits.min, limits.max, limits.max - 1]))
    key = st.one_of(st.sampled_from(EDGES), st.integers(0, 12))
    rows = st.dictionaries(key, st.tuples(*[number] * width), max_size=12)
    return draw(st.lists(st.builds(Push, rows, st.integers(0, 5).map(lambda i: i == 0)), max_size=12))


def content_of(rows: dict[int, tuple[float, ...]], dtype: str, width: int, wide: bool = False) -> Content:
    numbers = sorted(rows)
    values = np.array([rows[key] for key in numbers], dtype).reshape(len(numbers), width)
    keys = np.array(numbers, np.uint64)
    # Several keys have the same upper half.
    halves = np.stack([keys >> np.uint64(2), keys & np.uint64(3)], axis=1)
    return frozen(Content(from_pairs(halves) if wide else keys, values))


class Model:
    """The rule, row by row."""

    def __init__(self, dtype: str, threshold: float, decay: str) -> None:
        self.dtype, self.threshold, self.decay = np.dtype(dtype), threshold, decay
        self.held: dict[int, NDArray[Any]] = {}
        self.count = 0

    def push(self, content: Content, flush: bool) -> dict[int, NDArray[Any]]:
        self.count += len(content.values) > 0 and not flush
        delta = self.threshold / self.count if self.decay == "inverse" and self.count else self.threshold
        sent = {}
        assert content.keys is not None
        for key, row in zip(content.keys.tolist(), content.values, strict=True):
            before = self.held.pop(key, np.zeros_like(row))
            total, exact = row + before, [a + b for a, b in zip(row.tolist(), before.tolist(), strict=True)]
            if flush or max(abs(number) for number in exact) > delta:
                sent[key] = total
            elif any(exact):
                self.held[key] = total
        if flush:
            sent |= self.held
            self.held = {}
        return sent


def as_dict(keys: NDArray[np.uint64], rows: NDArray[Any]) -> dict[int, list[float]]:
    assert ascend(keys)
    assert len(keys) == len(rows)
    return dict(zip(keys.tolist(), rows.tolist(), strict=True))


def held_in(state: State) -> dict[int, list[float]]:
    return as_dict(state["keys"], state["rows"]) if "keys" in state else {}


@given(
    st.data(),
    st.sampled_from(DTYPES),
    st.integers(1, 3),
    st.sampled_from(["constant", "inverse"]),
    st.booleans(),
)
def test_rows_are_held_and_sent_by_the_threshold_and_none_is_lost(
    data: st.DataObject, dtype: str, width: int, decay: Any, wide: bool
) -> None:
    threshold = data.draw(st.sampled_from([0.25, 1.0, 3.0, 1e12]))
    coder = significant(Significant(threshold, decay))
    model, state = Model(dtype, threshold, decay), State()
    pushed: dict[int, NDArray[Any]] = {}
    arrived: dict[int, NDArray[Any]] = {}

    def send(push: Push) -> None:
        nonlocal state
        content = content_of(push.rows, dtype, width, wide)
        assert content.keys is not None
        for key, row in zip(content.keys.tolist(), content.values, strict=True):
            pushed[key] = pushed.get(key, 0) + row
        state, sent = coder.encode(state, content, about(flush=push.flush))
        sent = coder.decode(sent)
        assert sent.keys is not None
        assert sent.values.dtype == dtype and sent.values.shape[1] == width
        expected = model.push(content, push.flush)
        assert as_dict(sent.keys, sent.values) == {key: row.tolist() for key, row in expected.items()}
        assert held_in(state) == {key: row.tolist() for key, row in model.held.items()}
        for key, row in zip(sent.keys.tolist(), sent.values, strict=True):
            arrived[key] = arrived.get(key, 0) + row

    for push in data.draw(pushes(dtype, width)):
        send(push)
    send(Push({}, True))
    assert not held_in(state)
    zero = [0] * width
    total = {key: row.tolist() for key, row in pushed.items() if row.tolist() != zero}
    assert {key: row.tolist() for key, row in arrived.items() if row.tolist() != zero} == total


def test_floats_lose_nothing_but_rounding() -> None:
    rng = np.random.default_rng(5)
    coder = significant(Significant(0.5))
    state, pushed, arrived = State(), np.zeros((300, 2)), np.zeros((300, 2))
    for turn in range(201):
        keys = np.flatnonzero(rng.random(300) < 0.3) if turn < 200 else np.empty(0, np.int64)
        rows = rng.normal(0, 0.2, (len(keys), 2)).astype(np.float32)
        pushed[keys] += rows
        state, sent = coder.encode(state, Content(keys.astype(np.uint64), rows), about(flush=turn == 200))
        assert sent.keys is not None
        if turn < 200:
            assert len(sent.keys) < len(keys)
            assert np.abs(state["rows"]).max() <= 0.5
        arrived[sent.keys.astype(np.int64)] += sent.values
    # 60 additions of numbers below 2 or so, each rounded to 2^-24 of them.
    assert np.abs(arrived - pushed).max() < 60 * 2 * 2.0**-24


# --- the whole of a range, and the list itself -------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_all_of_a_range_is_listed_once_rows_are_held_back(dtype: str) -> None:
    coder = significant(Significant(1))
    where = about(range=KeyRange(100, 104))
    state, sent = coder.encode({}, frozen(Content(None, column(1, 2, 0, -3, dtype=dtype))), where)
    assert sent.keys is not None
    assert as_dict(sent.keys, sent.values) == {101: [2], 103: [-3]}
    assert held_in(state) == {100: [1]}
    state, sent = coder.encode(state, frozen(Content(None, column(5, 6, 7, 8, dtype=dtype))), where)
    assert sent.keys is None
    assert sent.values.tolist() == [[6], [6], [7], [8]]
    assert not held_in(state)


def test_the_last_range_of_all_is_listed_too() -> None:
    coder = significant(Significant(1))
    where = about(range=KeyRange(2**64 - 2, 2**64))
    state, sent = coder.encode({}, Content(None, column(3, 1)), where)
    assert sent.keys is not None and sent.keys.tolist() == [2**64 - 2]
    _, sent = coder.encode(state, Content(keys_of(), column()), where._replace(flush=True))
    assert sent.keys is not None and sent.keys.tolist() == [2**64 - 1]


def test_what_is_sent_whole_keeps_its_list() -> None:
    """The servers know the list by its signature: it must remain the same object."""
    coder = significant(Significant(1))
    keys = keys_of(3, 5)
    state, sent = coder.encode({}, Content(keys, column(0.5, 0.5)), about())
    assert len(sent.values) == 0 and sent.keys is not None and len(sent.keys) == 0
    state, sent = coder.encode(state, Content(keys, column(0.75, 2)), about())
    assert sent.keys is keys and sent.values.tolist() == [[1.25], [2.5]]
    large = Content(keys, column(2, 2))
    assert coder.encode(state, large, about())[1] is large
    assert coder.encode(state, large, about(flush=True))[1] is large


# --- flush -------------------------------------------------------------------------------------


def test_a_flush_sends_what_is_held_within_its_range() -> None:
    coder = significant(Significant(1))
    state, _ = coder.encode({}, Content(keys_of(1, 5, 9, 2**64 - 1), column(1, 1, 1, 1)), about())
    within = about(flush=True, range=KeyRange(5, 9))
    state, sent = coder.encode(state, Content(keys_of(6), column(0.5)), within)
    assert sent.keys is not None
    assert as_dict(sent.keys, sent.values) == {5: [1], 6: [0.5]}
    assert sorted(held_in(state)) == [1, 9, 2**64 - 1]
    nothing = Content(keys_of(), column())
    assert coder.encode(state, nothing, about(flush=True, range=KeyRange(5, 5)))[1] is nothing
    state, sent = coder.encode(state, nothing, about(flush=True))
    assert sent.keys is not None and sent.keys.tolist() == [1, 9, 2**64 - 1]
    assert set(state) == {"count"}


@pytest.mark.parametrize("keys", [None, keys_of()])
def test_a_flush_may_come_without_rows_of_any_type(keys: NDArray[np.uint64] | None) -> None:
    coder = significant(Significant(2))
    state, _ = coder.encode({}, Content(keys_of(4), np.array([[1, 2]], "<i8")), about())
    _, sent = coder.encode(state, Content(keys, np.empty(0, np.uint8)), about(flush=True))
    assert sent.values.dtype == np.int64 and sent.values.tolist() == [[1, 2]]
    assert sent.keys is not None and sent.keys.tolist() == [4]


# --- thresholds --------------------------------------------------------------------------------


def test_the_threshold_shrinks_by_the_count_of_messages() -> None:
    coder = significant(Significant(1, "inverse"))
    state = State()
    for turn in range(1, 9):  # Delta is 1 / turn: a quarter is held for four turns
        keys = keys_of(turn)
        state, sent = coder.encode(state, Content(keys, column(0.25)), about())
        assert len(sent.values) == (turn > 4)
        assert state["count"].tolist() == [turn]
    assert sorted(held_in(state)) == [1, 2, 3, 4]


def test_a_threshold_is_rounded_like_the_values() -> None:
    coder = significant(Significant(0.1))
    for dtype in ("<f4", "<f8"):
        values = np.array([[0.1], [np.nextafter(np.dtype(dtype).type(0.1), 1)]], dtype)
        _, sent = coder.encode({}, Content(keys_of(1, 2), values), about())
        assert sent.keys is not None and sent.keys.tolist() == [2]
    _, sent = significant(Significant(1e300)).encode({}, Content(keys_of(1), column(1e38)), about())
    assert len(sent.values) == 0


def test_one_large_number_sends_its_row_and_nan_is_large() -> None:
    coder = significant(Significant(1e30))
    values = np.array([[0, 1, 2], [0, np.nan, 0], [0, 0, -np.inf], [-0.0, 0, 0]], np.float32)
    state, sent = coder.encode({}, Content(keys_of(1, 2, 3, 4), values), about())
    assert sent.keys is not None and sent.keys.tolist() == [2, 3]
    np.testing.assert_array_equal(sent.values, values[1:3])
    assert held_in(state) == {1: [0, 1, 2]}  # of zeros there is nothing to hold


# --- what it leaves alone ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (Content(keys_of(1), column(0.5)), about(sums=False)),
        (Content(keys_of(1), column(0.5)), about(sums=False, flush=True)),
        (Content(keys_of(1), column(0.5)), about(vector="other")),
        (Content(keys_of(1), np.array([1, 2, 3], np.uint8)), about()),
        (Content(keys_of(1), np.array([1, 2, 3], np.uint8)), about(flush=True)),
        (Content(keys_of(), column()), about()),
        (Content(keys_of(1), column(0.5)), about(flush=True)),
    ],
)
def test_other_vectors_and_commands_are_unchanged(content: Content, where: About) -> None:
    state, sent = significant(Significant(1, vectors=("w",))).encode({}, content, where)
    assert sent is content
    assert state == {}


def test_rows_that_cannot_be_added_to_what_is_held_are_refused() -> None:
    coder = significant(Significant(1))
    state, _ = coder.encode({}, Content(keys_of(1), column(0.5)), about())
    for wrong in (column(0.5, dtype="<f8"), np.array([[0.5, 1]], np.float32)):
        for flush in (False, True):
            with pytest.raises(
                InputError, match=r"^filter significant: a push to 'w' has rows of .*float32$"
            ):
                coder.encode(state, Content(keys_of(1), wrong), about(flush=flush))


def test_a_note_is_refused_by_its_decoder() -> None:
    with pytest.raises(FilterError, match="note has 3 bytes, expected 0"):
        significant(Significant(1)).decode(Content(None, column(1), b"abc"))


def test_it_is_found_by_its_name_with_its_settings() -> None:
    found = known["significant"]
    settings: Any = typed.build(found.settings, {"threshold": 1, "decay": "inverse", "vectors": ["w"]})
    assert settings == Significant(1.0, "inverse", ("w",))
    assert found.make(settings).drops
    with pytest.raises(typed.InvalidValue, match="threshold must be above 0"):
        typed.build(Significant, {"threshold": 0})


# --- in a chain --------------------------------------------------------------------------------


def packing() -> Coder:
    """A lossless filter: rows as bytes, which knows nothing of keys."""

    def encode(state: State, content: Content, about: About) -> tuple[State, Content]:
        shape = f"{content.values.dtype.str} {content.values.shape[1]}".encode()
        return state, content._replace(values=np.frombuffer(content.values.tobytes(), np.uint8), note=shape)

    def decode(content: Content) -> Content:
        dtype, width = content.note.decode().split()
        values = np.frombuffer(content.values.tobytes(), dtype).reshape(-1, int(width))
        return content._replace(values=values, note=b"")

    return Coder(encode, decode)


def test_a_chain_behind_it_changes_nothing_of_what_arrives() -> None:
    rng = np.random.default_rng(2)
    chain = [
        significant(Significant(4)),
        packing(),
        significant(Significant(4)),
        random_skip(RandomSkip(0.5)),
    ]
    states: list[State] = [{} for _ in chain]
    pushed, arrived = np.zeros((50, 3), np.int64), np.zeros((50, 3), np.int64)
    for turn in range(41):
        keys = np.flatnonzero(rng.random(50) < 0.5) if turn < 40 else np.empty(0, np.int64)
        content = Content(keys.astype(np.uint64), rng.integers(-3, 4, (len(keys), 3)))
        np.add.at(pushed, keys, content.values)
        notes = []
        for position, coder in enumerate(chain):
            states[position], content = coder.encode(states[position], content, about(flush=turn == 40))
            notes.append(content.note)
            content = content._replace(note=b"")
        for coder, note in zip(reversed(chain), reversed(notes), strict=True):
            content = coder.decode(content._replace(note=note))
        assert content.keys is not None
        np.add.at(arrived, content.keys.astype(np.int64), content.values)
    np.testing.assert_array_equal(arrived, pushed)
    assert states[2] == states[3] == {}

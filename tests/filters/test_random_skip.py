"""Random skip is unbiased and reproducible, and does not change rows that it is not meant for.

The statistical tests have fixed seeds: they fail always or never. For a wrong seed to be chosen by chance has
a probability of 6e-7 for each bound of five standard deviations.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mpips import typed
from mpips.errors import FilterError
from mpips.filters.filter import About, Content, State, known
from mpips.filters.random_skip import RandomSkip, random_skip
from mpips.keys import from_pairs
from mpips.ranges import ALL, KeyRange
from mpips.transport.message import Command

SIGMAS = 5.0
KEYS = {
    "runs": np.arange(100_000, dtype=np.uint64),
    "strided": np.arange(100_000, dtype=np.uint64) << np.uint64(32),
    "hashed": np.unique(np.random.default_rng(1).integers(0, 2**64, 100_000, np.uint64)),
    "pairs": from_pairs(np.stack(np.divmod(np.arange(100_000, dtype=np.uint64), np.uint64(300)), axis=1)),
}


def about(**changes: Any) -> About:
    return About("w", Command.PUSH, ALL, True, 7, 3, 1, 5)._replace(**changes)


def kept(keep: float, keys: NDArray[np.uint64], where: About) -> NDArray[np.bool_]:
    """Return the keys that are kept, after a check of their rows."""
    values = np.arange(1, len(keys) + 1, dtype=np.float64)[:, None]
    _, sent = random_skip(RandomSkip(keep)).encode({}, Content(keys, values), where)
    assert sent.keys is not None
    found = np.isin(keys, sent.keys)
    np.testing.assert_array_equal(sent.keys, keys[found])
    np.testing.assert_array_equal(sent.values, values[found] * (1 / keep))
    return found


def within(count: float, trials: int, probability: float) -> bool:
    """Whether a binomial count is within so many standard deviations of what it should be."""
    spread = np.sqrt(trials * probability * (1 - probability))
    return bool(abs(count - trials * probability) < SIGMAS * spread)


# --- the draw ----------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [0.01, 0.3, 0.5, 0.9])
@pytest.mark.parametrize("kind", KEYS)
def test_a_share_of_q_is_kept_whatever_the_keys(keep: float, kind: str) -> None:
    keys = KEYS[kind]
    found = kept(keep, keys, about())
    assert within(found.sum(), len(keys), keep)
    assert within(
        (found[1::2] & found[::2]).sum(), len(keys) // 2, keep**2
    )  # neighbours know nothing of each other


@pytest.mark.parametrize("change", ["seed", "origin", "shard", "time"])
def test_sampling_is_independent_between_messages(change: str) -> None:
    keys = KEYS["runs"]
    first = kept(0.5, keys, about())
    for value in (0, 2**31, -1):
        assert within((first & kept(0.5, keys, about(**{change: value}))).sum(), len(keys), 0.25)
    assert not np.array_equal(kept(0.5, keys, about(origin=1, shard=3)), first)


def test_the_mean_of_what_arrives_is_what_was_pushed() -> None:
    """Per key over many messages: the sum of squared z values is chi-squared."""
    rng = np.random.default_rng(3)
    keys = np.unique(rng.integers(0, 2**64, 400, np.uint64))
    pushed = rng.normal(0, 1, (len(keys), 2)).astype(np.float32)
    arrived, times, keep = np.zeros((len(keys), 2)), 2000, 0.2
    coder, state = random_skip(RandomSkip(keep)), State()
    for time in range(times):
        state, sent = coder.encode(state, Content(keys, pushed), about(time=time))
        arrived[np.searchsorted(keys, coder.decode(sent).keys)] += sent.values  # type: ignore[arg-type]
    assert state == {}
    spread = np.abs(pushed) * np.sqrt((1 - keep) / keep / times)
    z = ((arrived / times - pushed) / spread)[:, 0]
    assert abs(z.mean()) < SIGMAS / np.sqrt(len(z))
    assert abs((z**2).sum() - len(z)) < SIGMAS * np.sqrt(2 * len(z))


@given(
    st.lists(st.integers(0, 2**64 - 1), unique=True, max_size=60).map(sorted),
    st.integers(1, 4),
    st.sampled_from(["<f4", "<f8"]),
    st.floats(0.01, 1),
    st.integers(0, 2**40),
)
def test_a_run_repeats_to_the_bit_and_the_width_does_not_matter(
    listed: list[int], width: int, dtype: str, keep: float, time: int
) -> None:
    keys, coder = np.array(listed, np.uint64), random_skip(RandomSkip(keep))
    values = np.random.default_rng(0).normal(0, 1, (len(keys), width)).astype(dtype)
    for array in (keys, values):
        array.flags.writeable = False
    where = about(time=time)
    _, sent = coder.encode({}, Content(keys, values), where)
    _, again = coder.encode({}, Content(keys, values), where)
    _, narrow = coder.encode({}, Content(keys, values[:, :1]), where)
    assert sent.keys is not None and again.keys is not None and narrow.keys is not None
    assert sent.keys.tolist() == again.keys.tolist() == narrow.keys.tolist()
    assert sent.values.dtype == dtype and sent.values.tobytes() == again.values.tobytes()
    found = np.isin(keys, sent.keys)
    assert sent.values.tolist() == (values[found].astype("<f8") * (1 / keep)).astype(dtype).tolist()
    assert narrow.values.tolist() == sent.values[:, :1].tolist()


# --- ranges, and what it leaves alone ----------------------------------------------------------


def test_all_of_a_range_is_listed_and_drawn_like_a_list() -> None:
    coder, where = random_skip(RandomSkip(0.5)), about(range=KeyRange(2**64 - 100, 2**64))
    values = np.ones((100, 1), np.float32)
    _, sent = coder.encode({}, Content(None, values), where)
    keys = np.arange(2**64 - 100, 2**64 - 1, dtype=np.uint64)
    _, listed = coder.encode({}, Content(keys, values[1:]), where)
    assert sent.keys is not None and listed.keys is not None
    assert 20 < len(sent.keys) < 80
    assert set(sent.keys.tolist()) - {2**64 - 1} == set(listed.keys.tolist())


@pytest.mark.parametrize("keys", [None, np.arange(10, 20, dtype=np.uint64)])
def test_where_all_are_kept_the_list_stays_itself(keys: NDArray[np.uint64] | None) -> None:
    coder = random_skip(RandomSkip(0.999))
    content = Content(keys, np.ones((10, 1)))
    _, sent = coder.encode({}, content, about(range=KeyRange(10, 20)))
    assert sent.keys is keys
    assert sent.values.tolist() == [[1 / 0.999]] * 10


@pytest.mark.parametrize(
    ("settings", "content"),
    [
        (RandomSkip(1), Content(None, np.ones((5, 1)))),
        (RandomSkip(0.5, ("v",)), Content(None, np.ones((5, 1)))),
        (RandomSkip(0.5), Content(None, np.ones((5, 1), np.int32))),
        (RandomSkip(0.5), Content(None, np.ones((5, 1), np.int64))),
        (RandomSkip(0.5), Content(None, np.ones(5, np.uint8))),
        (RandomSkip(0.5), Content(np.empty(0, np.uint64), np.ones((0, 1)))),
    ],
)
def test_other_vectors_and_integers_are_unchanged(settings: RandomSkip, content: Content) -> None:
    assert random_skip(settings).encode({}, content, about())[1] is content


def test_a_note_is_refused_by_its_decoder() -> None:
    with pytest.raises(FilterError, match="note has 1 bytes, expected 0"):
        random_skip(RandomSkip(0.5)).decode(Content(None, np.ones((1, 1)), b"a"))


def test_it_is_found_by_its_name_with_its_settings() -> None:
    found = known["random_skip"]
    assert found.make(typed.build(found.settings, {"keep": 0.25})).drops
    for wrong in (0, 1.5):
        with pytest.raises(typed.InvalidValue, match="keep must be"):
            typed.build(RandomSkip, {"keep": wrong})

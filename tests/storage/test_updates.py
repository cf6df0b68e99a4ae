"""The built-in updates, compared with their formulas in NumPy, and the registries."""

from __future__ import annotations

import json
import math
import re
import struct
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpips.errors import JobError, UsageError
from mpips.jit.kernel import kernel
from mpips.storage import updates as module
from mpips.storage.segment import Segment, one_by_one
from mpips.storage.update_kernels import shrink
from mpips.storage.updates import (
    Column,
    VectorSpec,
    call,
    call_named,
    change_settings,
    settings_of,
    update,
    update_named,
)


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(module, "_updates", dict(module._updates))
    monkeypatch.setattr(module, "_calls", dict(module._calls))
    return


def pushes(rng: np.random.Generator, steps: int, keys: int, width: int) -> list[tuple[Any, Any]]:
    out = []
    for _ in range(steps):
        chosen = np.sort(rng.choice(50, keys, replace=False)).astype(np.uint64)
        out.append((chosen, rng.normal(size=(keys, width))))
    return out


def soft(z: float, by: float) -> float:
    return math.copysign(max(abs(z) - by, 0.0), z)


@pytest.mark.parametrize("dtype", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", ["add", "assign"])
def test_add_and_assign(name: str, dense: bool, width: int, dtype: str) -> None:
    segment = Segment(VectorSpec("w", dtype, width, extent=50, update=name, dense=dense))
    expected = np.zeros((50, width), dtype)
    for keys, rows in pushes(np.random.default_rng(1), 5, 20, width):
        whole = (rows * 8).astype(dtype)
        segment.push(keys, whole)
        at = keys.astype(int)
        expected[at] = whole if name == "assign" else expected[at] + whole
    assert np.array_equal(segment.pull(np.arange(50, dtype=np.uint64)), expected)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_sgd_by_hand(dtype: str) -> None:
    rate, l1, l2 = 0.3, 0.2, 0.5
    spec = VectorSpec("w", dtype, 2, 50, "sgd", {"rate": rate, "l1": l1, "l2": l2})
    segment, w = Segment(spec), np.zeros((50, 2), dtype)
    for keys, rows in pushes(np.random.default_rng(2), 6, 30, 2):
        rows = rows.astype(dtype)
        segment.push(keys, rows)
        for k, row in zip(keys.tolist(), rows, strict=True):
            for j in range(2):
                w[k, j] = soft(float(w[k, j]) - rate * float(row[j]), rate * l1) / (1 + rate * l2)
    assert np.array_equal(segment.pull(np.arange(50, dtype=np.uint64)), w)
    assert (w == 0).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_adagrad_by_hand(dtype: str) -> None:
    alpha, beta, l1, l2 = 0.5, 0.7, 0.1, 0.3
    settings = {"alpha": alpha, "beta": beta, "l1": l1, "l2": l2}
    segment = Segment(VectorSpec("w", dtype, 1, 50, "adagrad", settings))
    w, squares = np.zeros(50), np.zeros(50)
    for keys, rows in pushes(np.random.default_rng(3), 6, 30, 1):
        rows = rows.astype(dtype)
        segment.push(keys, rows)
        for k, (g,) in zip(keys.tolist(), rows.astype(float), strict=True):
            squares[k] += g * g
            e = (math.sqrt(squares[k]) + beta) / alpha
            w[k] = soft(e * w[k] - g, l1) / (e + l2)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    assert np.allclose(segment.pull(np.arange(50, dtype=np.uint64))[:, 0], w, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_ftrl_is_algorithm_1_of_mcmahan(dtype: str) -> None:
    """The reference is in the paper's own form: n sums squares, w is derived from z before each step."""
    alpha, beta, l1, l2 = 0.4, 0.9, 0.3, 0.2
    settings = {"alpha": alpha, "beta": beta, "l1": l1, "l2": l2}
    segment = Segment(VectorSpec("w", dtype, 1, 50, "ftrl", settings))
    z, n = np.zeros(50), np.zeros(50)

    def weight(k: int) -> float:
        if abs(z[k]) <= l1:
            return 0.0
        return -(z[k] - math.copysign(l1, z[k])) / ((beta + math.sqrt(n[k])) / alpha + l2)

    for keys, rows in pushes(np.random.default_rng(4), 20, 30, 1):
        rows = rows.astype(dtype)
        segment.push(keys, rows)
        for k, (g,) in zip(keys.tolist(), rows.astype(float), strict=True):
            sigma = (math.sqrt(n[k] + g * g) - math.sqrt(n[k])) / alpha
            z[k], n[k] = z[k] + g - sigma * weight(k), n[k] + g * g
    tolerance = 1e-11 if dtype == "float64" else 2e-5
    w = segment.pull(np.arange(50, dtype=np.uint64))[:, 0]
    assert np.allclose(w, [weight(k) for k in range(50)], rtol=tolerance, atol=tolerance)
    assert np.count_nonzero(w) > 20


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_adam_is_algorithm_1_of_kingma_and_ba_with_a_decoupled_decay(dtype: str, decay: float) -> None:
    """The reference keeps the moments of each key in exact fractions of its own number of steps."""
    alpha, beta1, beta2, epsilon = 0.05, 0.8, 0.95, 1e-6
    settings = {"alpha": alpha, "beta1": beta1, "beta2": beta2, "epsilon": epsilon, "decay": decay}
    segment = Segment(VectorSpec("w", dtype, 2, 50, "adam", settings))
    w = np.zeros((50, 2))
    gradients: dict[int, list[Any]] = {}
    for keys, rows in pushes(np.random.default_rng(5), 12, 30, 2):
        rows = rows.astype(dtype)
        segment.push(keys, rows)
        for k, row in zip(keys.tolist(), rows.astype(float), strict=True):
            known = gradients.setdefault(k, [])
            known.append(row)
            # Equation 4 of the paper: the moments as sums over all gradients.
            t, g = len(known), np.array(known)
            ages = np.arange(t - 1, -1, -1)[:, None]
            m = (1 - beta1) * (beta1**ages * g).sum(axis=0) / (1 - beta1**t)
            v = (1 - beta2) * (beta2**ages * g * g).sum(axis=0) / (1 - beta2**t)
            w[k] -= alpha * (m / (np.sqrt(v) + epsilon) + decay * w[k])
    tolerance = 1e-11 if dtype == "float64" else 1e-4
    pulled = segment.pull(np.arange(50, dtype=np.uint64))
    assert np.allclose(pulled, w, rtol=tolerance, atol=tolerance)
    assert {key: int(segment.state["t"][slot, 0]) for key, slot in slots(segment)} == {
        key: len(known) for key, known in gradients.items()
    }


def slots(segment: Segment) -> list[tuple[int, int]]:
    """Return each key that was pushed, and its slot."""
    keys, found = segment.select()
    return list(zip(keys.tolist(), one_by_one(found).tolist(), strict=True))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("width", [1, 3])
@pytest.mark.parametrize("name", ["sgd", "adagrad", "ftrl", "adam"])
def test_consecutive_slots_are_updated_to_the_same_bits(name: str, width: int, dtype: str) -> None:
    rng, slots = np.random.default_rng(0), np.arange(7, 44, dtype=np.int32)
    settings = {"l1": 0.1, "l2": 0.1} if name != "adam" else {"decay": 0.1}
    spec = VectorSpec("w", dtype, width, extent=50, update=name, settings=settings, dense=True)
    whole, single = Segment(spec), Segment(spec)
    for step in range(6):
        rows = rng.normal(size=(37, width)).astype(dtype)
        chosen = slots[::-1].copy() if step == 3 else slots
        for segment, part in ((whole, slice(None)), *((single, slice(i, i + 1)) for i in range(37))):
            segment.update.apply(
                segment.values, segment.state, chosen[part].copy(), rows[part], segment.settings
            )
        if step == 2:
            # Some rows have more steps than others.
            for segment in (whole, single):
                segment.update.apply(
                    segment.values, segment.state, slots[:5].copy(), rows[:5], segment.settings
                )
    for one, other in zip(
        (whole.values, *whole.state.values()), (single.values, *single.state.values()), strict=True
    ):
        assert one.tobytes() == other.tobytes()


@given(st.lists(st.floats(-10, 10), min_size=1, max_size=20))
def test_ftrl_with_a_large_l1_stays_zero(gradients: list[float]) -> None:
    segment = Segment(VectorSpec("w", update="ftrl", settings={"l1": 1e4}))
    for g in gradients:
        segment.push(np.array([7], np.uint64), np.array([[g]]))
    assert segment.pull(np.array([7], np.uint64)).tolist() == [[0.0]]
    assert segment.state["z"][0, 0] == pytest.approx(sum(gradients))


@given(st.floats(), st.floats(min_value=0.0, allow_nan=False))
def test_the_soft_threshold_is_its_definition_to_the_bit(z: float, by: float) -> None:
    expected = z - by if z > by else z + by if z < -by else 0.0
    assert struct.pack("<d", shrink(z, by)) == struct.pack("<d", expected)


@pytest.mark.usefixtures("registry")
def test_the_users_own_update_has_columns_rows_replies_and_reads() -> None:
    @update(
        "mean",
        columns=lambda spec: {"pushes": Column("int64", 1, 2)},
        push_row=lambda spec: Column("float32", 3),
        reply_row=lambda spec: Column("int64", 1),
        read=lambda values, state, slots: values[slots] * 10,
    )
    def mean(values: Any, state: Any, slots: Any, rows: Any, settings: Any) -> Any:
        state["pushes"][slots] += 1
        values[slots] += rows.sum(axis=1, keepdims=True) * settings["scale"]
        return state["pushes"][slots]

    segment = Segment(VectorSpec("w", update="mean", settings={"scale": 0.5, "mode": "any"}))
    keys = np.array([3, 2**63, 2**64 - 1], np.uint64)
    assert segment.push(keys, np.ones((3, 3), np.float32)) is None
    reply = segment.push(keys[1:], np.ones((2, 3), np.float32), reply=True)
    assert reply is not None
    assert reply.tolist() == [[4], [4]]
    assert segment.pull(np.array([1, 3, 2**63], np.uint64)).tolist() == [[0], [15], [30]]


@kernel("void(f8[:,::1], i4[:,::1], i4[::1], f8[:,::1], f8[::1])")
def halved(values: Any, pushes: Any, slots: Any, rows: Any, settings: Any) -> None:
    """Add a part of the rows, and count."""
    for i in range(len(slots)):
        pushes[slots[i], 0] += 1
        for j in range(values.shape[1]):
            values[slots[i], j] += settings[0] * settings[1] * rows[i, j]


@pytest.mark.parametrize("dense", [False, True])
def test_an_update_may_be_a_kernel(dense: bool, registry: None) -> None:
    columns = {"pushes": Column("int32")}
    defaults = {"part": 0.5, "more": 1}
    update("halved", columns=lambda spec: columns, defaults=defaults)(halved)
    segment = Segment(
        VectorSpec("w", width=2, extent=9, update="halved", settings={"part": 0.25}, dense=dense)
    )
    keys = np.array([2, 3, 7], np.uint64)
    assert segment.push(keys, np.arange(6.0), reply=True).tolist() == [[0, 0.25], [0.5, 0.75], [1, 1.25]]  # type: ignore[union-attr]
    change_settings(segment, {"more": 4})
    segment.push(keys[:2], np.ones((2, 2)))
    assert segment.pull(keys).tolist() == [[1, 1.25], [1.5, 1.75], [1, 1.25]]
    slots = one_by_one(segment.resolve(keys))
    assert segment.state["pushes"][slots, 0].tolist() == [2, 2, 1]
    with pytest.raises(UsageError, match="setting 'more' must be a number, got 'x'"):
        change_settings(segment, {"more": "x"})
    with pytest.raises(UsageError, match="update 'halved' is already defined"):
        update("halved")(lambda *more: None)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"apply_range": lambda *rows: None},
            "update 'bad', which is a kernel: apply_range is for updates in Python",
        ),
        (
            {"defaults": {"how": "fast"}},
            "update 'bad', which is a kernel: setting 'how' is no number: 'fast'",
        ),
    ],
)
def test_what_a_kernel_cannot_have_is_refused(fields: Any, said: str, registry: None) -> None:
    with pytest.raises(UsageError, match=re.escape(said)):
        update("bad", **fields)(halved)


@pytest.mark.parametrize("signatures", [(), ("f8(f8[:,::1], i4[::1], f8[:,::1], f8[::1])",)])
def test_a_kernel_with_a_result_is_refused(signatures: tuple[str, ...], registry: None) -> None:
    made = kernel(*signatures)(lambda values, slots, rows, settings: 0.5)
    with pytest.raises(
        UsageError, match="update 'bad', which is a kernel: it needs signatures, and no result"
    ):
        update("bad")(made)


def test_unknown_names_list_the_known_ones() -> None:
    with pytest.raises(
        JobError, match=r"unknown update 'ad'; known: .*adagrad, adam, add, .*assign, .*ftrl.*sgd"
    ):
        update_named("ad")
    with pytest.raises(JobError, match=r"unknown call 'x'; known: .*settings"):
        call_named("x")


@pytest.mark.usefixtures("registry")
def test_a_second_function_of_one_name_is_refused_and_a_reload_is_not() -> None:
    with pytest.raises(JobError, match=r"update 'add' is already defined at .*updates\.py:\d+"):
        update("add")(lambda values, state, slots, rows, settings: None)

    def load(at: int) -> Any:
        def mine(segment: Any, args: Any) -> Any:
            return {"at": at}

        return mine

    call("mine")(load(1))
    call("mine")(load(2))
    assert call_named("mine").function(None, {}) == {"at": 2} and not call_named("mine").reads
    call("mine", reads=True)(load(3))
    assert call_named("mine").function(None, {}) == {"at": 3} and call_named("mine").reads
    with pytest.raises(JobError, match="call 'mine' is already defined"):
        call("mine")(lambda segment, args: {})


@pytest.mark.usefixtures("registry")
def test_a_cell_of_a_notebook_may_be_run_again_and_two_functions_of_a_file_are_two() -> None:
    cell = "@update('of a cell')\ndef ours(values, state, slots, rows, settings):\n    values[slots] = {}\n"
    names = {"update": update, "__name__": "__main__"}
    for number in (1, 2):
        exec(compile("\n" * number + cell.format(number), f"cell {number}", "exec"), names)
        values = np.zeros(1)
        update_named("of a cell").apply(values, {}, np.zeros(1, np.int32), np.ones(1), {})
        assert values[0] == number
    with pytest.raises(UsageError, match="update 'of a cell' is already defined at cell 3:1"):
        exec(compile(cell.format(3) + cell.format(4), "cell 3", "exec"), names)


def test_settings_are_checked_and_can_be_changed_by_a_call() -> None:
    spec = VectorSpec("w", update="ftrl", settings={"l1": 3})
    assert settings_of(spec) == {"alpha": 0.1, "beta": 1.0, "l1": 3, "l2": 0.0}
    segment = Segment(spec)
    assert change_settings(segment, {"alpha": 0.5})["alpha"] == 0.5
    assert segment.settings["alpha"] == 0.5
    with pytest.raises(JobError, match="unknown setting 'rate'; known: alpha, beta, l1, l2"):
        Segment(VectorSpec("w", update="ftrl", settings={"rate": 1}))
    for wrong in ("0.1", True, math.nan):
        with pytest.raises(JobError, match="'alpha' must be a number"):
            change_settings(segment, {"alpha": wrong})
    assert segment.settings["alpha"] == 0.5


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"dtype": "float16"}, "float32, float64, int32, int64"),
        ({"width": 0}, "width 0 is outside"),
        ({"extent": 0}, "extent 0 is outside"),
        ({"dense": True}, "leave dense out"),
    ],
)
def test_a_bad_specification_is_a_clear_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(JobError, match=message) as caught:
        VectorSpec("w", **fields)
    assert "\n" not in str(caught.value)


def test_gradient_updates_refuse_integers() -> None:
    for name in ("sgd", "adagrad", "ftrl"):
        with pytest.raises(JobError, match=f"update '{name}' needs float32 or float64, not int32"):
            Segment(VectorSpec("w", "int32", update=name))


@pytest.mark.parametrize(
    "fields",
    [
        {"extent": np.int64(1000)}, {"extent": np.uint64(7)}, {"width": np.int32(2)}, {"key_bits": np.int64(128)},
        {"dense": np.bool_(True), "extent": 9}, {"aggregate": np.bool_(True)}, {"dtype": np.dtype("float32")},
    ],
)  # fmt: skip
def test_a_specification_of_numpy_values_is_one_of_pythons(fields: Any) -> None:
    found = asdict(VectorSpec("w", **fields))
    assert json.loads(json.dumps(found)) == found
    assert found == asdict(VectorSpec("w", **fields))


@pytest.mark.parametrize(
    ("fields", "what"),
    [
        ({"key_bits": 128.0}, "key_bits 128.0 is not an integer"),
        ({"width": 2.0}, "width 2.0 is not an integer"),
        ({"extent": 1e3}, "extent 1000.0 is not an integer"),
        ({"extent": True}, "extent True is not an integer"),
        ({"dense": 1, "extent": 9}, "dense 1 is neither True nor False"),
        ({"aggregate": "no"}, "aggregate 'no' is neither True nor False"),
    ],
)
def test_a_specification_that_no_checkpoint_could_hold_is_refused(fields: Any, what: str) -> None:
    with pytest.raises(UsageError, match=what):
        VectorSpec("w", **fields)


@pytest.mark.parametrize("value", [None, [1.0], np.float32(0.5), {"a": 1}])
def test_a_setting_that_no_checkpoint_could_hold_is_refused(registry: None, value: Any) -> None:
    update("own")(lambda values, state, slots, rows, settings: None)
    with pytest.raises(UsageError, match="setting 'rate' is neither a number nor text"):
        settings_of(VectorSpec("w", update="own", settings={"rate": value}))


@pytest.mark.parametrize("rate", [10**400, math.nan, math.inf, -math.inf, True, "1", None])
def test_a_setting_that_is_no_finite_number_is_refused(rate: Any) -> None:
    with pytest.raises(UsageError, match="setting 'rate' must be a number"):
        settings_of(VectorSpec("w", update="sgd", settings={"rate": rate}))

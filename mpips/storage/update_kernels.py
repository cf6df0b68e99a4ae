"""The kernels of the built-in updates: each changes the rows of some slots by the rows that were pushed for them.

`values` and the state columns are [capacity, width], `slots` i32[n] names n different rows of them, `rows` is
[n, width]. Gradient updates compute sums of squares and their roots in the type of the rows, and all in which a setting
takes part in double precision.

Rows of consecutive slots are one array, whose elements are updated by vector instructions, to the same bits. So are
those of a wide row, since slots are taken as unsigned numbers: one below 0 would be counted from the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel

Array = NDArray[Any]
_VALUES = ("f4", "f8", "i4", "i8")


@kernel(*(f"void({t}[:,::1], i4[::1], {t}[:,::1])" for t in _VALUES))
def assign_rows(values: Array, slots: NDArray[np.int32], rows: Array) -> None:
    """Set rows."""
    for i in range(len(slots)):
        s = np.uint32(slots[i])
        for j in range(values.shape[1]):
            values[s, j] = rows[i, j]


@kernel(*(f"void({t}[:,::1], i4[::1], {t}[:,::1])" for t in _VALUES))
def add_rows(values: Array, slots: NDArray[np.int32], rows: Array) -> None:
    """Add rows."""
    # By far the most frequent case, without an inner loop.
    if values.shape[1] == 1:
        column, added = values[:, 0], rows[:, 0]
        for i in range(len(slots)):
            column[np.uint32(slots[i])] += added[i]
        return
    for i in range(len(slots)):
        s = np.uint32(slots[i])
        for j in range(values.shape[1]):
            values[s, j] += rows[i, j]


@kernel("f8(f8, f8)", inline=True)
def shrink(z: float, by: float) -> float:
    """Soft threshold: sign(z) max(|z| - by, 0), by >= 0; 0.0 for NaN."""
    # Without a branch, which would be mispredicted for half of the rows, and would prevent vectorization.
    beyond = abs(z) - by
    # -0.0 + 0.0 is 0.0
    return math.copysign(beyond if beyond > 0.0 else 0.0, z) + 0.0


@kernel()
def _run_of(slots: NDArray[np.int32]) -> int:
    """Return the first of consecutive slots; -1 if they are not, or none."""
    if len(slots) == 0:
        return -1
    first, breaks = np.int64(slots[0]), 0
    for i in range(len(slots)):
        breaks += slots[i] != first + i
    return first if breaks == 0 else -1  # type: ignore[return-value]


@kernel()
def _part(rows: Array, first: int, count: int) -> Any:
    """View the elements of `count` rows."""
    width = rows.shape[1]
    return rows.reshape(-1)[first * width : (first + count) * width]


@kernel(inline=True)
def _sgd(w: float, g: float, rate: float, l1: float, l2: float) -> Any:
    return shrink(w - rate * g, rate * l1) / (1.0 + rate * l2)


@kernel(*(f"void({t}[:,::1], i4[::1], {t}[:,::1], f8, f8, f8)" for t in ("f4", "f8")))
def sgd_rows(values: Array, slots: NDArray[np.int32], rows: Array, rate: float, l1: float, l2: float) -> None:
    """Step along gradients, then take the proximal step of l1 and l2."""
    first, count = _run_of(slots), len(slots)
    if first >= 0:
        mine, given = _part(values, first, count), _part(rows, 0, count)
        for i in range(len(given)):
            mine[i] = _sgd(float(mine[i]), float(given[i]), rate, l1, l2)
        return
    for i in range(count):
        s = np.uint32(slots[i])
        for j in range(values.shape[1]):
            values[s, j] = _sgd(float(values[s, j]), float(rows[i, j]), rate, l1, l2)


@kernel(inline=True)
def _adagrad(w: float, n: float, g: float, alpha: float, beta: float, l1: float, l2: float) -> Any:
    norm = np.sqrt(n * n + g * g)
    e = (norm + beta) / alpha
    return shrink(e * w - g, l1) / (e + l2), norm


@kernel(*(f"void({t}[:,::1], {t}[:,::1], i4[::1], {t}[:,::1], f8, f8, f8, f8)" for t in ("f4", "f8")))
def adagrad_rows(
    values: Array,
    norms: Array,
    slots: NDArray[np.int32],
    rows: Array,
    alpha: float,
    beta: float,
    l1: float,
    l2: float,
) -> None:
    """Update by AdaGrad with a proximal step; `norms` are the roots of the summed squares."""
    first, count = _run_of(slots), len(slots)
    if first >= 0:
        mine, its, given = _part(values, first, count), _part(norms, first, count), _part(rows, 0, count)
        for i in range(len(given)):
            mine[i], its[i] = _adagrad(float(mine[i]), float(its[i]), float(given[i]), alpha, beta, l1, l2)
        return
    for i in range(count):
        s = np.uint32(slots[i])
        for j in range(values.shape[1]):
            values[s, j], norms[s, j] = _adagrad(
                float(values[s, j]), float(norms[s, j]), float(rows[i, j]), alpha, beta, l1, l2
            )


@kernel(inline=True)
def _ftrl(w: float, z: float, n: float, g: float, alpha: float, beta: float, l1: float, l2: float) -> Any:
    norm = np.sqrt(n * n + g * g)
    dual = z + g - (norm - n) / alpha * w
    return shrink(-dual, l1) / ((beta + norm) / alpha + l2), dual, norm


@kernel(
    *(f"void({t}[:,::1], {t}[:,::1], {t}[:,::1], i4[::1], {t}[:,::1], f8, f8, f8, f8)" for t in ("f4", "f8"))
)
def ftrl_rows(
    values: Array,
    duals: Array,
    norms: Array,
    slots: NDArray[np.int32],
    rows: Array,
    alpha: float,
    beta: float,
    l1: float,
    l2: float,
) -> None:
    """Update by FTRL-Proximal; `norms` are the roots of the summed squares."""
    first, count = _run_of(slots), len(slots)
    if first >= 0:
        mine, z, n = _part(values, first, count), _part(duals, first, count), _part(norms, first, count)
        given = _part(rows, 0, count)
        for i in range(len(given)):
            mine[i], z[i], n[i] = _ftrl(
                float(mine[i]), float(z[i]), float(n[i]), float(given[i]), alpha, beta, l1, l2
            )
        return
    for i in range(count):
        s = np.uint32(slots[i])
        for j in range(values.shape[1]):
            w, g = float(values[s, j]), float(rows[i, j])
            values[s, j], duals[s, j], norms[s, j] = _ftrl(
                w, float(duals[s, j]), float(norms[s, j]), g, alpha, beta, l1, l2
            )


@kernel(
    *(
        f"void({t}[:,::1], {t}[:,::1], {t}[:,::1], i8[:,::1], i4[::1], {t}[:,::1], f8, f8, f8, f8, f8)"
        for t in ("f4", "f8")
    )
)
def adam_rows(
    values: Array,
    means: Array,
    squares: Array,
    steps: Array,
    slots: NDArray[np.int32],
    rows: Array,
    alpha: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
) -> None:
    """Update by Adam with decoupled weight decay; each row counts its own steps."""
    run, count = _run_of(slots), len(slots)
    known, first, second = 0.0, 1.0, 1.0
    if run >= 0:
        done, others = steps[run, 0], 0
        for i in range(count):
            others += steps[run + i, 0] != done
        if others == 0:
            t = float(done + 1)
            first, second = 1.0 - beta1**t, 1.0 - beta2**t
            mine, mean, square = (
                _part(values, run, count),
                _part(means, run, count),
                _part(squares, run, count),
            )
            given = _part(rows, 0, count)
            for i in range(count):
                steps[run + i, 0] += 1
            for i in range(len(given)):
                g = float(given[i])
                m = beta1 * float(mean[i]) + (1.0 - beta1) * g
                v = beta2 * float(square[i]) + (1.0 - beta2) * g * g
                mean[i] = m
                square[i] = v
                w = float(mine[i])
                mine[i] = w - alpha * (m / first / (np.sqrt(v / second) + epsilon) + decay * w)
            return
    for i in range(count):
        s = np.uint32(slots[i])
        steps[s, 0] += 1
        t = float(steps[s, 0])
        # Neighbouring rows often have as many steps, and a power takes longer than the rest.
        if t != known:
            known, first, second = t, 1.0 - beta1**t, 1.0 - beta2**t
        for j in range(values.shape[1]):
            g = float(rows[i, j])
            m = beta1 * float(means[s, j]) + (1.0 - beta1) * g
            v = beta2 * float(squares[s, j]) + (1.0 - beta2) * g * g
            means[s, j] = m
            squares[s, j] = v
            w = float(values[s, j])
            values[s, j] = w - alpha * (m / first / (np.sqrt(v / second) + epsilon) + decay * w)

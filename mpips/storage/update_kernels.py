"""The kernels of the built-in updates: each changes the rows of some slots by the rows that were pushed for them.

`values` and the state columns are [capacity, width], `slots` i32[n] names n different rows of them, `rows` is
[n, width]. Gradient updates compute sums of squares and their roots in the type of the rows, and all in which a setting
takes part in double precision.
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
        for j in range(values.shape[1]):
            values[slots[i], j] = rows[i, j]


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
        for j in range(values.shape[1]):
            values[slots[i], j] += rows[i, j]


@kernel("f8(f8, f8)", inline=True)
def shrink(z: float, by: float) -> float:
    """Soft threshold: sign(z) max(|z| - by, 0), by >= 0; 0.0 for NaN."""
    # Without a branch, which would be mispredicted for half of the rows, and would prevent vectorization.
    beyond = abs(z) - by
    # -0.0 + 0.0 is 0.0
    return math.copysign(beyond if beyond > 0.0 else 0.0, z) + 0.0


@kernel(*(f"void({t}[:,::1], i4[::1], {t}[:,::1], f8, f8, f8)" for t in ("f4", "f8")))
def sgd_rows(values: Array, slots: NDArray[np.int32], rows: Array, rate: float, l1: float, l2: float) -> None:
    """Step along gradients, then take the proximal step of l1 and l2."""
    for i in range(len(slots)):
        for j in range(values.shape[1]):
            w = float(values[slots[i], j]) - rate * float(rows[i, j])
            values[slots[i], j] = shrink(w, rate * l1) / (1.0 + rate * l2)


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
    for i in range(len(slots)):
        s = slots[i]
        for j in range(values.shape[1]):
            g = float(rows[i, j])
            n = float(norms[s, j])
            n = np.sqrt(n * n + g * g)
            norms[s, j] = n
            e = (n + beta) / alpha
            values[s, j] = shrink(e * float(values[s, j]) - g, l1) / (e + l2)


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
    for i in range(len(slots)):
        s = slots[i]
        for j in range(values.shape[1]):
            g = float(rows[i, j])
            before = float(norms[s, j])
            n = np.sqrt(before * before + g * g)
            z = float(duals[s, j]) + g - (n - before) / alpha * float(values[s, j])
            norms[s, j] = n
            duals[s, j] = z
            values[s, j] = shrink(-z, l1) / ((beta + n) / alpha + l2)


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
    known, first, second = 0.0, 1.0, 1.0
    for i in range(len(slots)):
        s = slots[i]
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

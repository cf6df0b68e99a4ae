"""The KKT filter (paper, section 5.1): which features the servers keep active; the compiled loops of `proximal`.

A feature with w = 0 and |g| below l1, by more than a threshold, meets the optimality (KKT) conditions, and is likely to
meet them until the end. It is left out of the next blocks: by `start_keys` at the beginning, and by `prox_step`, which
takes the proximal step of the others. `reset_keys` chooses the active features anew from the exact gradient.
"""

from __future__ import annotations

import math

import numpy as np

from mpips import kernel
from mpips.jobs.sparse_lr.kernels import (
    B1,
    F4,
    F8,
    FAR,
    I1,
    I4,
    LARGE,
    LARGEST_SCALE,
    NEAR,
    NEVER,
    OVERFLOWS,
    SMALL,
)

_SUMS = "f4", "f8"
"""Types of sums over workers; f8 if they are exact."""
ALONE = np.empty(0), np.empty(0, np.int8)
"""`before` and `visits` of `prox_step` where passes do not overlap."""


@kernel(*(f"void(i4[::1], {t}[:, ::1], f8, b1, f4[::1], f4[::1], b1[::1], f4[::1])" for t in _SUMS))
def start_keys(
    slots: I4, sums: F4 | F8, l1: float, kkt: bool, d: F4, scale: F4, active: B1, reply: F4
) -> None:
    """Set up the keys of `slots` at w = 0 from the workers' `column_sums`, summed: f4 or f8[k, 4].

    f4 or f8[k, 2] are the last two of them, for features whose entries are all 1 and so their own squares.

    scale: 1 / rms of the feature's entries, the unit of its radius d. reply[k] is the radius of a feature that
    starts active, as all do without `kkt`; NEAR where w = 0 is optimal at the start; NEVER where w = 0 is optimal
    for every value of the other weights (max(along, against) <= l1), so that it need not be examined again.
    """
    last = sums.shape[1] - 2
    for k in range(slots.shape[0]):
        s = slots[k]
        along, against = np.float64(sums[k, last]), np.float64(sums[k, last + 1])
        unit = 1.0
        if last > 0:
            entries, squares = np.float64(sums[k, 0]), np.float64(sums[k, 1])
            unit = math.sqrt(entries / squares) if squares > 0.0 else 1.0
        # A feature that can never become active needs no scale.
        if unit > LARGEST_SCALE:
            unit = OVERFLOWS if max(along, against) > l1 else 1.0
        scale[s] = unit
        d[s] = scale[s]
        # The gradient at w = 0.
        active[s] = not kkt or 0.5 * abs(against - along) > l1
        if active[s]:
            reply[k] = d[s]
        else:
            reply[k] = NEAR if max(along, against) > l1 else NEVER


@kernel(
    *(
        f"f8(i4[::1], {t}[:, ::1], f8, f8, f8[::1], f4[::1], f4[::1], b1[::1], f4[:, ::1], f8[::1], i1[::1])"
        for t in _SUMS
    )
)
def prox_step(
    slots: I4,
    sums: F4 | F8,
    l1: float,
    threshold: float,
    w: F8,
    d: F4,
    scale: F4,
    active: B1,
    reply: F4,
    before: F8,
    visits: I1,
) -> float:
    """Take the proximal step of every slot from sums[k] = (g, U); return the largest violation.

    w' = S(U w - g, l1) / U, clipped to w +- d, as f4; then d = 2 |step|, but at least d / 2 and scale / 1000,
    and at most 5 scale. A feature with w = 0 and |g| < l1 - threshold is dropped: it keeps w = 0, d and its
    slot, and `reset_keys` can reactivate it. reply[k] = (w', new radius, or 0 when dropped): f4[k, 2].

    Where passes overlap, before[s] becomes the weight before the step, and visits[s] changes between 0 and 1; otherwise
    both arrays are empty (`ALONE`).

    The reply is the weight, not the step: the weight is exact in f4, which a step may not be, so the workers' margins
    correspond to exactly these weights.
    """
    worst = 0.0
    for k in range(slots.shape[0]):
        s = slots[k]
        g = np.float64(sums[k, 0])
        unit = np.float64(scale[s])
        least_u = 1e-30 if 1.0 / LARGE < unit < 1.0 / SMALL else 1e-30 / (unit * unit)
        u = max(np.float64(sums[k, 1]), least_u)
        radius = np.float64(d[s])
        old = w[s]
        if before.shape[0] > 0:
            before[s] = old
            visits[s] ^= 1
        if old == 0.0:
            worst = max(worst, abs(g) - l1)
            if abs(g) < l1 - threshold:
                active[s] = False
                reply[k, 0] = 0.0
                reply[k, 1] = 0.0
                continue
        else:
            worst = max(worst, abs(g + math.copysign(l1, old)))
        z = u * old - g
        target = math.copysign(abs(z) - l1, z) / u if abs(z) > l1 else 0.0
        reply[k, 0] = min(max(target, old - radius), old + radius)
        w[s] = reply[k, 0]
        least, most = 1e-3 * np.float64(scale[s]), 5.0 * np.float64(scale[s])
        d[s] = min(max(2.0 * abs(w[s] - old), 0.5 * radius, least), most)
        active[s] = True
        reply[k, 1] = d[s]
    return worst


@kernel(
    *(f"UniTuple(f8, 2)(i4[::1], {t}[::1], f8, f8, f8, f8[::1], f4[::1], b1[::1], f4[::1])" for t in _SUMS)
)
def reset_keys(
    slots: I4, g: F4 | F8, l1: float, threshold: float, far: float, w: F8, d: F4, active: B1, reply: F4
) -> tuple[float, float]:
    """Choose the active set anew from the exact gradient g f4[k]: w != 0, or |g| >= l1 - threshold.

    reply[k] is the radius of an active feature, FAR where |g| < far, and otherwise NEAR. Return (max |g|,
    number of features that had been dropped although |g| > l1).
    """
    largest = 0.0
    returned = 0.0
    for k in range(slots.shape[0]):
        s = slots[k]
        size = np.float64(abs(g[k]))
        largest = max(largest, size)
        if size > l1 and not active[s]:
            returned += 1.0
        active[s] = w[s] != 0.0 or size >= l1 - threshold
        reply[k] = d[s] if active[s] else FAR if size < far else NEAR
    return largest, returned

"""Initial values: the values of a key before its first push, which then updates them.

A value is a pure function of seed, key and column, so that it is the same on any layout, before and after a recovery,
and needs no message and no memory. Each key has its own SplitMix64 generator with the initial state
mix(key + mix(seed)); for a key of 128 bits, low ^ mix(high) stands for the key. Column j uses the j-th output for
`Uniform`, and the outputs 2j and 2j + 1 for `Normal`, in each case the upper 53 bits.

`Normal` uses the transform of Box and Muller (1958). Its logarithm, sine and cosine are reimplementations of those in
FreeBSD's msun (fdlibm): they use only operations whose results IEEE 754 defines to the last bit, so that all systems
compute the same bits. The functions of a system's C library do not guarantee this.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mpips.jit.kernel import kernel
from mpips.jit.splitmix import GAMMA, mix
from mpips.keys import KeyArray, folded

U8 = np.uint64
_S11, _S51 = U8(11), U8(51)
_ONE, _THREE, _EIGHTH = U8(1), U8(3), U8(1 << 50)
_UNIT = 2.0**-53
_TURN = 2.0 * math.pi * 2.0**-53
_SQRT_HALF = math.sqrt(0.5)
_LN2_HIGH, _LN2_LOW = 6.93147180369123816490e-01, 1.90821492927058770002e-10

_TYPES = ("f4", "f8")


@dataclass(frozen=True)
class Uniform:
    """Initial values that are uniform from `low` to `high`: low + (high - low) u, u in [0, 1), in float64.

    They are then rounded to the vector's dtype, float32 or float64. Use different seeds for different vectors.

    >>> from mpips import VectorSpec
    >>> VectorSpec("u", init=Uniform(-1.0, 1.0, seed=7)).initial(np.array([3], np.uint64))
    array([[0.63025462]])
    """

    low: float
    high: float
    seed: int = 0
    """Seed of the hash: 0 to 2**64 - 1."""


@dataclass(frozen=True)
class Normal:
    """Initial values from the normal distribution of this mean and standard deviation, computed in float64.

    They are then rounded to the vector's dtype, float32 or float64. Use different seeds for different vectors.

    >>> from mpips import VectorSpec
    >>> VectorSpec("u", init=Normal(0.0, 0.01, seed=7)).initial(np.array([3], np.uint64))
    array([[0.0049284]])
    """

    mean: float
    std: float
    seed: int = 0
    """Seed of the hash: 0 to 2**64 - 1."""


Initial = float | Uniform | Normal
"""Initial values of a vector: a number, or a distribution."""


def checked(init: Any, dtype: str) -> Initial:
    """Return initial values as a number or distribution, also from their fields in JSON.

    Raises:
        ValueError: they are neither, or not values of a vector of this dtype.
    """
    if isinstance(init, Mapping):
        kinds = {frozenset(kind.__annotations__): kind for kind in (Uniform, Normal)}
        if frozenset(init) not in kinds:
            raise ValueError(f"init {dict(init)!r} is not a number, Uniform or Normal")
        init = kinds[frozenset(init)](**init)
    if isinstance(init, Uniform | Normal):
        return _distribution(init, dtype)
    number: float = _number("init", init)
    if np.dtype(dtype).kind == "f":
        return _fitting("init", number, dtype)
    held = np.iinfo(dtype)
    if number != int(number) or not held.min <= number <= held.max:
        raise ValueError(f"init {number!r} is not of type {dtype}")
    return int(number)


def _distribution(init: Uniform | Normal, dtype: str) -> Uniform | Normal:
    if np.dtype(dtype).kind != "f":
        raise ValueError(
            f"init {init!r} needs float32 or float64, not {dtype}, which can begin with a number"
        )
    fields = {name: _number(f"init: {name}", value) for name, value in vars(init).items()}
    if not (isinstance(fields["seed"], int) and 0 <= fields["seed"] < 2**64):
        raise ValueError(f"init: seed {init.seed!r} is not an integer from 0 to 2**64 - 1")
    if isinstance(init, Uniform):
        low, high = (_fitting(f"init: {name}", fields[name], dtype) for name in ("low", "high"))
        if low > high:
            raise ValueError(f"init: low {low!r} is above high {high!r}")
        _fitting("init: high - low", high - low, dtype)
        return Uniform(low, high, fields["seed"])
    mean, std = float(fields["mean"]), float(fields["std"])
    if std < 0:
        raise ValueError(f"init: std {std!r} is negative")
    # No value is farther away than 9 standard deviations.
    _fitting("init: |mean| + 9 std", abs(mean) + 9 * std, dtype)
    return Normal(mean, std, fields["seed"])


def _number(name: str, value: Any) -> Any:
    """Return a finite number, an int or float."""
    if isinstance(value, np.integer | np.floating):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or value in (math.inf, -math.inf):
        raise ValueError(
            f"{name} {value!r} is not a number" + (", Uniform or Normal" if name == "init" else "")
        )
    if value != value:
        raise ValueError(f"{name} is not a number")
    return value


def _fitting(name: str, value: float, dtype: str) -> float:
    """Return a float that fits into the dtype."""
    if abs(value) > float(np.finfo(dtype).max):
        raise ValueError(f"{name} {value!r} does not fit into {dtype}")
    return float(value)


def fill(init: Initial, keys: KeyArray, out: NDArray[Any]) -> None:
    """Write the initial values of keys u64[n] or KEY128[n] into `out`, contiguous, [n, width] of the vector's dtype."""
    if not isinstance(init, Uniform | Normal):
        out[...] = init
        return
    # Kernels take no read-only view of a message.
    keys, seed = np.array(folded(keys), np.uint64), U8(init.seed)
    if isinstance(init, Uniform):
        _uniform(keys, seed, init.low, init.high - init.low, out)
    else:
        _normal(keys, seed, init.mean, init.std, out)


def rows(init: Initial, keys: KeyArray, width: int, dtype: Any) -> NDArray[Any]:
    """Return the initial rows of keys u64[n] or KEY128[n], [n, width] of a dtype."""
    out = np.empty((len(keys), width), dtype)
    fill(init, keys, out)
    return out


@kernel("f8(f8)", inline=True)
def _log(x: float) -> float:
    """Return log(x) of x in (0, 1], as fdlibm's e_log.c: x = 2^k (1 + f), log(1 + f) by a polynomial."""
    k = 0.0
    while x < _SQRT_HALF:
        x += x
        k -= 1.0
    f = x - 1.0
    s = f / (2.0 + f)
    z = s * s
    w = z * z
    even = w * (3.999999999940941908e-01 + w * (2.222219843214978396e-01 + w * 1.531383769920937332e-01))
    odd = z * (
        6.666666666666735130e-01
        + w * (2.857142874366239149e-01 + w * (1.818357216161805012e-01 + w * 1.479819860511658591e-01))
    )
    half = 0.5 * f * f
    return k * _LN2_HIGH - ((half - (s * (half + (odd + even)) + k * _LN2_LOW)) - f)


@kernel("f8(u8)", inline=True)
def _cosine(part: np.uint64) -> float:
    """Return cos(2 pi part / 2^53): the nearest quarter turn exactly, the rest by fdlibm's k_cos.c or k_sin.c."""
    quarter = (part + _EIGHTH) >> _S51
    t = float(np.int64(part - (quarter << _S51))) * _TURN
    z = t * t
    if quarter & _ONE == 0:
        r = z * (
            4.16666666666666019037e-02
            + z * (-1.38888888888741095749e-03
            + z * (2.48015872894767294178e-05
            + z * (-2.75573143513906633035e-07
            + z * (2.08757232129817482790e-09
            + z * -1.13596475577881948265e-11))))
        )  # fmt: skip
        value = 1.0 - (0.5 * z - z * r)
    else:
        r = 8.33333333332248946124e-03 + z * (
            -1.98412698298579493134e-04
            + z * (2.75573137070700676789e-06
            + z * (-2.50507602534068634195e-08
            + z * 1.58969099521155010221e-10))
        )  # fmt: skip
        value = t + z * t * (-1.66666666666666324348e-01 + z * r)
    # cos(t + a half turn) = -cos(t), cos(t + a quarter turn) = -sin(t).
    turned = quarter & _THREE
    return -value if turned == _ONE or turned == _ONE + _ONE else value


@kernel(*(f"void(u8[::1], u8, f8, f8, {t}[:,::1])" for t in _TYPES))
def _uniform(keys: NDArray[np.uint64], seed: np.uint64, low: float, span: float, out: NDArray[Any]) -> None:
    start = mix(seed)
    for i in range(len(keys)):
        state = mix(keys[i] + start)
        for j in range(out.shape[1]):
            out[i, j] = low + span * (float(mix(state) >> _S11) * _UNIT)
            state += GAMMA


@kernel(*(f"void(u8[::1], u8, f8, f8, {t}[:,::1])" for t in _TYPES))
def _normal(keys: NDArray[np.uint64], seed: np.uint64, mean: float, std: float, out: NDArray[Any]) -> None:
    start = mix(seed)
    for i in range(len(keys)):
        state = mix(keys[i] + start)
        for j in range(out.shape[1]):
            # In (0, 1], since there is no logarithm of 0.
            radius = math.sqrt(-2.0 * _log(float((mix(state) >> _S11) + _ONE) * _UNIT))
            state += GAMMA
            out[i, j] = mean + std * (radius * _cosine(mix(state) >> _S11))
            state += GAMMA

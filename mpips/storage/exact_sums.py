"""Exact sums of float64, the same bits for every order and grouping.

The scalars that control a run, its objective and its norms, are sums over all examples and all keys. A plain
sum depends on how the terms were grouped, hence on the number of servers and workers; an exact sum does not,
so a run makes the same decisions on every layout.

The idea is the superaccumulator (Kulisch; Neal 2015, "Fast exact summation using small and large
superaccumulators"): a fixed-point number wide enough for every finite float64, here 67 limbs of 32 bits, each
kept in an int64. Limb i counts units of 2**(32 i - 1074), 2**-1074 being the smallest subnormal. A float64 is
an integer of 53 bits times a power of two, so it adds to at most three limbs, by less than 1.5 * 2**32 each:
2**30 terms fit before carries must be moved up. Moving carries does not change the value, and
addition of integers is commutative and associative, so order and grouping do not matter.

Infinities and NaNs are counted separately, and determine the result as in IEEE addition.

Where there are too many sums for accumulators, such as a gradient's, terms are rounded before they are added
(`quantum`, `rounded`): to multiples of one power of two q, the same on all ranks, and so coarse that the sum stays
within 2**53 q. Then every float64 addition of them is exact, in any order and grouping, with plain `+=` and in the
servers' aggregation, too (Demmel and Nguyen 2015, "Parallel reproducible summation"; the rounding is Rump's
extraction). A term costs two more additions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mpips.jit.kernel import kernel

LIMBS = 67
"""Limbs of 32 bits: 2098 bits for the range of finite float64, and 46 more for carries."""

POSITIVE, NEGATIVE, NAN, SIZE = LIMBS, LIMBS + 1, LIMBS + 2, LIMBS + 3
"""Indices of the counts of +inf, -inf and NaN, after the limbs; and the length of an accumulator."""

# the limbs count units of 2**-_LOWEST
_LOWEST = 1074
# terms that fit between two normalisations
_ROOM = 1 << 30
# values per kernel call: far below _ROOM, and a copy of them stays in cache
_BLOCK = 1 << 16


@kernel("void(f8[::1], i8[::1])")
def accumulate(values: NDArray[np.float64], limbs: NDArray[np.int64]) -> None:
    """Add `values` (at most 2**30 since the last `normalise`) to the accumulator `limbs` i8[SIZE]."""
    bits = values.view(np.int64)
    for i in range(bits.size):
        word = bits[i]
        exponent = (word >> 52) & 0x7FF
        mantissa = word & 0xFFFFFFFFFFFFF
        if exponent == 0x7FF:
            if mantissa != 0:
                limbs[NAN] += 1
            elif word > 0:
                limbs[POSITIVE] += 1
            else:
                limbs[NEGATIVE] += 1
            continue
        if exponent != 0:  # a normal number has the hidden bit; a subnormal one shares exponent 1
            mantissa |= 1 << 52
            exponent -= 1
        limb = exponent >> 5
        shift = exponent & 31
        sign = word >> 63  # 0 or -1: (x ^ sign) - sign negates without a branch
        low = (mantissa & 0xFFFFFFFF) << shift  # below 2**63
        high = (mantissa >> 32) << shift  # below 2**52
        middle = (low >> 32) + (high & 0xFFFFFFFF)
        limbs[limb] += ((low & 0xFFFFFFFF) ^ sign) - sign
        limbs[limb + 1] += (middle ^ sign) - sign
        limbs[limb + 2] += ((high >> 32) ^ sign) - sign


@kernel("void(i8[::1])")
def normalise(limbs: NDArray[np.int64]) -> None:
    """Move carries up so that each limb but the last lies in [0, 2**32); the value stays."""
    carry = np.int64(0)
    for i in range(LIMBS - 1):
        total = limbs[i] + carry
        carry = total >> 32
        limbs[i] = total & 0xFFFFFFFF
    limbs[LIMBS - 1] += carry


class ExactSum:
    """Sum float64 exactly: state is an i8[70] accumulator, `value()` the sum rounded once, to nearest even.

    The result does not depend on the order of the terms, nor on how they are split over several sums that are
    merged. A zero sum is +0.0.
    """

    __slots__ = ("_limbs", "_terms")

    def __init__(self, values: ArrayLike = ()) -> None:
        self._limbs = np.zeros(SIZE, np.int64)
        self._terms = 0  # since the last normalisation
        self.add(values)

    def add(self, values: ArrayLike) -> ExactSum:
        """Add one number or an array of any shape (exact in float64); return this sum."""
        flat = np.ascontiguousarray(values, np.float64).reshape(-1)
        for start in range(0, flat.size, _BLOCK):
            block = flat[start : start + _BLOCK]
            if not (block.flags.writeable and block.flags.aligned):  # kernels take no such view
                block = block.copy()
            self._make_room(block.size)
            accumulate(block, self._limbs)
        return self

    def merge(self, other: ExactSum) -> ExactSum:
        """Add another sum; return this one."""
        theirs = other._limbs.copy()
        normalise(theirs)
        self._make_room(2)  # a normalised limb is as large as one term; two are safe
        self._limbs += theirs
        return self

    def value(self) -> float:
        """Return the correctly rounded sum; infinite or NaN as IEEE addition, infinite beyond range."""
        positive, negative, nan = (int(count) for count in self._limbs[LIMBS:])
        if nan or (positive and negative):
            return math.nan
        if positive or negative:
            return math.inf if positive else -math.inf
        total = 0
        for limb in self._limbs[LIMBS - 1 :: -1].tolist():
            total = (total << 32) + limb
        try:
            return total / (1 << _LOWEST)  # Python divides integers with one correct rounding
        except OverflowError:
            return math.inf if total > 0 else -math.inf

    def to_list(self) -> list[int]:
        """Return the state as SIZE ints below 2**53 in size, for JSON; equal sums give equal lists."""
        normalise(self._limbs)
        self._terms = 1
        return [int(limb) for limb in self._limbs]

    @classmethod
    def from_list(cls, state: Sequence[Any]) -> ExactSum:
        """Restore a sum from `to_list`; ValueError if `state` is not one."""
        if len(state) != SIZE or not all(type(limb) is int and abs(limb) < 2**53 for limb in state):
            raise ValueError(f"the state of an exact sum is {SIZE} integers below 2**53")
        result = cls()
        result._limbs[:] = state
        normalise(result._limbs)
        result._terms = 1
        return result

    def _make_room(self, terms: int) -> None:
        if self._terms + terms > _ROOM:
            normalise(self._limbs)
            self._terms = 1
        self._terms += terms

    def __float__(self) -> float:
        return self.value()

    def __repr__(self) -> str:
        return f"ExactSum({self.value()!r})"


# --- Sums of terms that are rounded beforehand ------------------------------------------------------------------------

BITS = 51
"""Bits between a quantum and the bound of the sum's terms: two less than float64 has, for rounding and carries."""
_ANCHOR = 3.0 * 2.0**BITS
_LEAST, _MOST = 2.0**-900, 2.0**960  # bounds that quanta are made for: nothing is subnormal, or overflows


def quantum(bound: ArrayLike, terms: float = 1.0) -> Any:
    """Return the power of two q such that the sum of terms that are `rounded` to multiples of q is exact.

    bound: an upper bound of the terms' absolute values, a number or an array; terms: an upper bound of their number on
    all ranks together (or 1, if `bound` bounds the sum of the absolute values). Both must be the same on all ranks. The
    error of the sum is at most q/2 for each nonzero term, and q < 2**-50 bound terms: for n terms it is less than n
    2**-51 times that product. Raises ValueError unless bound times terms lies in [0, 2**960).
    """
    total = np.multiply(bound, terms, dtype=np.float64)
    if not (total >= 0.0).all() or not (total < _MOST).all():
        raise ValueError(f"a bound times terms must lie in [0, 2**960), got {total!r}")
    mantissa, exponent = np.frexp(np.maximum(total, _LEAST))
    q = np.ldexp(1.0, exponent - (mantissa == 0.5) - BITS)
    return float(q) if q.ndim == 0 else q


def rounded(values: ArrayLike, q: ArrayLike) -> NDArray[np.float64]:
    """Return values, rounded to multiples of `quantum`s q (to even), as float64: sums of them are exact.

    Raises ValueError if one is beyond 2**51 q, because q belongs to a smaller bound.
    """
    terms, anchor = np.asarray(values, np.float64), np.multiply(_ANCHOR, q)
    if not (np.abs(terms) * 3.0 <= anchor).all():
        raise ValueError("a value is beyond 2**51 q: q belongs to a smaller bound")
    result: NDArray[np.float64] = (terms + anchor) - anchor
    return result


# The same in kernels. An anchor is 3 * 2**e, no term being larger than 2**e: float64 has steps of 2**(e - BITS) between
# 2 * 2**e and 4 * 2**e, where anchor + term lies, so that adding it rounds the term.


def anchors(bound: ArrayLike, terms: float = 1.0) -> Any:
    """Return the anchors of `quantum(bound, terms)`."""
    return quantum(bound, terms) * _ANCHOR


@kernel("f8(f8)", inline=True)
def anchor_of(bound: float) -> float:
    """Return the anchor that rounds terms whose sizes add up to no more than `bound`, below 2**960: 3 * 2**51 q.

    The next power of two is computed as by Rump, Ogita and Oishi (2008, "Accurate floating-point summation I",
    algorithm 3.6).
    """
    bound = max(bound, 2.0**-900)
    above = bound * 2.0**53
    power = abs((above + bound) - above)
    return 3.0 * (power if power > 0.0 else bound)


@kernel("f8(f8, f8)", inline=True)
def snap(term: float, anchor: float) -> float:
    """Return a term rounded to a multiple of the quantum that belongs to an anchor."""
    return (term + anchor) - anchor


def sums_of(limbs: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the sums f8[n] that accumulators i8[n, SIZE] hold, each limb below 2**53: of several ranks, added."""
    return np.array([ExactSum.from_list(row.tolist()).value() for row in limbs])

"""SplitMix64: hashes of 64-bit numbers, and random numbers by position (Steele, Lea, Flood 2014)."""

from __future__ import annotations

import numpy as np

from mpips.jit.kernel import kernel

U8 = np.uint64
GAMMA = U8(0x9E3779B97F4A7C15)
"""The distance of two consecutive states of the generator."""
_MUL1 = U8(0xBF58476D1CE4E5B9)
_MUL2 = U8(0x94D049BB133111EB)
_S27 = U8(27)
_S30 = U8(30)
_S31 = U8(31)


@kernel("u8(u8)", inline=True)
def mix(state: np.uint64) -> np.uint64:
    """Hash a number: the generator's output after `state`, and a bijection on 64 bits."""
    z = state + GAMMA
    z = (z ^ (z >> _S30)) * _MUL1
    z = (z ^ (z >> _S27)) * _MUL2
    return z ^ (z >> _S31)

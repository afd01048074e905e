"""Noise of random sampling as Triton device functions, keyed by (seed, position): independent of the batch.

The specification is `reference/noise.py`.
"""

from __future__ import annotations

import triton
import triton.language as tl
from triton.language.extra.cuda import libdevice


@triton.jit
def _mix(h):
    h ^= h >> 16
    h *= 0x85EBCA6B
    h ^= h >> 13
    h *= 0xC2B2AE35
    h ^= h >> 16
    return h


@triton.jit
def line_keys(seed_low, seed_high, position):
    """The two uint32 keys of a line (reference/noise.py)."""
    golden = tl.full([], 0x9E3779B9, tl.uint32)
    a = _mix(seed_low.to(tl.uint32, bitcast=True) ^ _mix(position.to(tl.uint32, bitcast=True) + golden))
    b = _mix(seed_high.to(tl.uint32, bitcast=True) ^ a ^ tl.full([], 0x85EBCA77, tl.uint32))
    return a, b


@triton.jit
def exponential(a, b, tokens, FAST: tl.constexpr):
    """-log(u) of `tokens` (reference/noise.py), from the same 23 random bits.

    With FAST by the hardware's logarithm, whose absolute error is small but whose relative error is not: near u = 1, where
    likely winners lie, a series replaces it.
    """
    h = (tokens.to(tl.uint32, bitcast=True) * tl.full([], 0x9E3779B1, tl.uint32)) ^ a
    h ^= h >> 16
    h *= tl.full([], 0x7FEB352D, tl.uint32)
    h ^= b
    h ^= h >> 15
    h *= tl.full([], 0x846CA68B, tl.uint32)
    odd = (2 * (h >> 9) + 1).to(tl.int32)
    u = odd.to(tl.float32) * 5.9604644775390625e-08
    if FAST:
        rest = (16777216 - odd).to(tl.float32) * 5.9604644775390625e-08
        series = rest * (1.0 + rest * (0.5 + rest * (0.3333333333 + rest * (0.25 + rest * 0.2))))
        noise = tl.where(rest < 0.0625, series, libdevice.fast_log2f(u) * -0.6931471805599453)
    else:
        noise = -tl.log(u)
    return noise

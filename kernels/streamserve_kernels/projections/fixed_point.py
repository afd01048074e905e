"""A lone row in fixed point of 16 bits, as the matrix units take it: two 8-bit integers a number, rounded in registers.

Numbers share a scale in each 128 columns, their largest magnitude over `LARGEST`, and are scale * (256 * high + low). So none
is off by more than 2 ** -16 of the largest: summed up, that is less than rounding each number to bf16 loses, whatever the
outliers, since the largest of 128 numbers is at most 11 times their root mean square.

The product has eight columns, of which a row in two parts would leave six empty. So the row is spread over them, and nothing
need be moved between lanes: lane 4 n + t rounds 8 columns of every 128, those that it multiplies, to their high parts with an
even n and to their low parts with an odd one; all else of column n of the operand is zero.
"""

from __future__ import annotations

import triton
import triton.language as tl

UNIT = 128
"""Columns that share a scale."""

_UNIT = tl.constexpr(UNIT)
_LARGEST = tl.constexpr(127 * 256)
_LEAST = tl.constexpr(1e-30)
"""Scales are no smaller, so that columns of zeros are zeros."""
# Floats as large as this have no bits below 1: what is added to it is rounded, and is the integer in its lower bits.
_ROUNDS = tl.constexpr(1.5 * 2**23)


@triton.jit
def _to_fixed(x, inverse, is_high):
    """The high or the low part of numbers over their scale, in the lowest byte; the high one is the nearest 256th."""
    bits = (x * inverse + (_ROUNDS + tl.where(is_high, 128.0, 0.0))).to(tl.int32, bitcast=True)
    return bits >> tl.where(is_high, 8, 0)


@triton.jit
def _word(left, right, SLICES: tl.constexpr):
    """Words [slices, 8, 4] of the lowest bytes of two columns and of two further on: the even ones, then the odd."""
    first, second = tl.split(tl.reshape(left, [SLICES, 8, 4, 2]))
    third, fourth = tl.split(tl.reshape(right, [SLICES, 8, 4, 2]))
    return (first & 255) | ((third & 255) << 8) | ((second & 255) << 16) | (fourth << 24)


@triton.jit
def split_bytes(words):
    """The bytes of words, lowest first, as a last dimension of 2 and one of 2."""
    # Made so that compilers find nothing to do: the bytes are those of one register, in its order.
    return tl.join(tl.join(words, words >> 16), tl.join(words >> 8, words >> 24)).to(tl.int8)


@triton.jit
def columns_of(lane):
    """Columns [lanes, 2] of 128 for each warp that lanes read for `round_columns`, with those 8, 16 and 24 further on."""
    return (lane // 32 * _UNIT + lane % 32 // 8 * 32 + lane % 4 * 2)[:, None] + tl.arange(0, 2)[None, :]


@triton.jit
def round_columns(x0, x1, x2, x3, SLICES: tl.constexpr):
    """Two words of each lane [slices, 8, 4], and their scale [slices].

    x0 to x3  [slices, 64] fp32, what lanes have read; lanes 8 p + t and 8 p + 4 + t the same
    """
    # What is not finite makes the scale so, and the product.
    left = tl.maximum(tl.abs(x0), tl.abs(x1), propagate_nan=tl.PropagateNan.ALL)
    right = tl.maximum(tl.abs(x2), tl.abs(x3), propagate_nan=tl.PropagateNan.ALL)
    largest = tl.maximum(left, right, propagate_nan=tl.PropagateNan.ALL)
    # As integers: the maximum of a warp's is one instruction.
    largest = tl.max(largest.to(tl.int32, bitcast=True), axis=1).to(tl.float32, bitcast=True)
    largest = tl.maximum(largest, _LEAST, propagate_nan=tl.PropagateNan.ALL)
    scale = largest * (1.0 / _LARGEST)
    inverse = (1.0 / scale)[:, None]
    is_high = tl.arange(0, 64)[None, :] % 16 < 8
    early = _word(_to_fixed(x0, inverse, is_high), _to_fixed(x1, inverse, is_high), SLICES)
    late = _word(_to_fixed(x2, inverse, is_high), _to_fixed(x3, inverse, is_high), SLICES)
    return early, late, scale


@triton.jit
def spread_operand(early, late, first: tl.constexpr, IN_FOURS: tl.constexpr):
    """The operand [slices, 64, 8] of a unit's first 64 columns, or with first == 2 of its last, of words of `round_columns`."""
    index = tl.arange(0, 8)[None, :, None] // 2
    is_one = tl.where(index == first, -1, 0)
    is_two = tl.where(index == first + 1, -1, 0)
    words = tl.join(tl.join(early & is_one, late & is_one), tl.join(early & is_two, late & is_two))
    # [slices, n, t, early or late, one or two, byte // 2, byte % 2]
    parts = split_bytes(words)
    if IN_FOURS:
        parts = tl.permute(parts, (0, 4, 2, 3, 5, 6, 1))
    else:
        parts = tl.permute(parts, (0, 4, 3, 2, 5, 6, 1))
    return tl.reshape(parts, [early.shape[0], 64, 8])

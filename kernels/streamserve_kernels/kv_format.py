"""The numbers of an 8-bit KV cache in Triton: rounded to bytes when they are written, widened in registers when they are read.

The specification is `reference/kv_format.py`. Kernels see bytes, or words of two of them, and none of Triton's own 8-bit types,
which exist from compute capability 8.9 on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from .launch import capability
from .reference.kv_format import UNSCALED, KvScales, is_eight_bit

# A byte goes to the top of 16 bits. Of e5m2 these are the number in fp16; of e4m3 sign, exponent and mantissa go into place
# from there, which gives the number divided by 2^8, exactly: numbers too small for normal fp16 are subnormal in both.
_E5M2_WORDS = tl.constexpr("""{
prmt.b32 $0, $2, 0, 0x2404;
and.b32 $1, $2, 0xff00ff00;
}""")
_E4M3_WORDS = tl.constexpr("""{
.reg .b32 a, s, t;
prmt.b32 a, $2, 0, 0x2404;
shr.u32 s, a, 1;
shr.u32 t, $2, 1;
and.b32 s, s, 0x3f803f80;
and.b32 t, t, 0x3f803f80;
lop3.b32 $0, a, 0x80008000, s, 0xEA;
lop3.b32 $1, $2, 0x80008000, t, 0xEA;
}""")
_E5M2_BYTES = tl.constexpr("""{
prmt.b32 $0, $2, 0, 0x1404;
prmt.b32 $1, $2, 0, 0x3424;
}""")
_E4M3_BYTES = tl.constexpr("""{
.reg .b32 a, b, s, t;
prmt.b32 a, $2, 0, 0x1404;
prmt.b32 b, $2, 0, 0x3424;
shr.u32 s, a, 1;
shr.u32 t, b, 1;
and.b32 s, s, 0x3f803f80;
and.b32 t, t, 0x3f803f80;
lop3.b32 $0, a, 0x80008000, s, 0xEA;
lop3.b32 $1, b, 0x80008000, t, 0xEA;
}""")


class KvFormat(NamedTuple):
    """How a kernel takes the cache of a layer.

    name           "e4m3" or "e5m2"; None for numbers of the model's dtype, without scales
    assembles      whether numbers are widened by PTX; Triton's interpreter knows none
    key_inverse    what keys are multiplied by before they are rounded; value_inverse values
    key_scale      what a score is multiplied by; value_scale a weighted sum of values
    """

    name: str | None
    assembles: bool
    key_inverse: float | None = None
    value_inverse: float | None = None
    key_scale: float = 1.0
    value_scale: float | None = None


_NAMES = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}


def kv_format(cache: torch.Tensor, scales: KvScales | None) -> KvFormat:
    """The format of a cache; `scales` are those of 8-bit floats, None for 1."""
    name = _NAMES.get(cache.dtype)
    if name is None:
        return KvFormat(None, False)
    key, value = scales or UNSCALED
    return KvFormat(name, capability(cache.device) > (0, 0), 1.0 / key, 1.0 / value, key, value)


def in_bytes(cache: torch.Tensor) -> torch.Tensor:
    """A view of an 8-bit cache as bytes; others as they are."""
    return cache.view(torch.uint8) if is_eight_bit(cache.dtype) else cache


def in_words(cache: torch.Tensor) -> torch.Tensor:
    """A view of an 8-bit cache as words of two numbers, which the matrix units' loads can transpose; others as they are."""
    return cache.view(torch.int16) if is_eight_bit(cache.dtype) else cache


@triton.jit
def unit(FORMAT: tl.constexpr):
    """What widened numbers are multiplied by to get those that were stored."""
    if FORMAT == "e4m3":
        factor = 256.0
    else:
        factor = 1.0
    return factor


@triton.jit
def _half(byte, FORMAT: tl.constexpr):
    """int32 bytes as fp16, in `unit`s."""
    if FORMAT == "e4m3":
        bits = ((byte & 0x80) << 8) | ((byte & 0x7F) << 7)
    else:
        bits = byte << 8
    return bits.to(tl.int16).to(tl.float16, bitcast=True)


@triton.jit
def widen_bytes(stored, FORMAT: tl.constexpr, ASSEMBLES: tl.constexpr):
    """Bytes as fp16, in `unit`s."""
    if not ASSEMBLES:
        wide = _half(stored.to(tl.int32), FORMAT)
    else:
        ptx: tl.constexpr = _E4M3_BYTES if FORMAT == "e4m3" else _E5M2_BYTES
        wide = tl.inline_asm_elementwise(ptx, "=r,=r,r", [stored], dtype=tl.float16, is_pure=True, pack=4)
    return wide


@triton.jit
def widen_words(words, FORMAT: tl.constexpr, ASSEMBLES: tl.constexpr):
    """The first and the second numbers of words as fp16, in `unit`s."""
    if not ASSEMBLES:
        bytes_ = words.to(tl.int32)
        first, second = _half(bytes_ & 0xFF, FORMAT), _half((bytes_ >> 8) & 0xFF, FORMAT)
    else:
        ptx: tl.constexpr = _E4M3_WORDS if FORMAT == "e4m3" else _E5M2_WORDS
        first, second = tl.inline_asm_elementwise(
            ptx, "=r,=r,r", [words], dtype=(tl.float16, tl.float16), is_pure=True, pack=2
        )
    return first, second


@triton.jit
def round_to_bytes(x, FORMAT: tl.constexpr):
    """The 8-bit numbers nearest to fp32 ones, as int32: ties to even, beyond the range its end, NaN as NaN."""
    if FORMAT == "e4m3":
        largest, normal, steps, shift, bias = 448.0, 0.5**6, 2.0**14, 20, 960
    else:
        largest, normal, steps, shift, bias = 57344.0, 0.5**14, 2.0**7, 21, 448
    bits = tl.minimum(tl.maximum(x, -largest), largest).to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    rounded = ((magnitude + (1 << (shift - 1)) - 1 + ((magnitude >> shift) & 1)) >> shift) - bias
    # Below the smallest normal number steps are equal: a sum with 2^23 of them is rounded to a whole one, in its mantissa.
    size = magnitude.to(tl.float32, bitcast=True)
    rounded = tl.where(size < normal, (size + steps).to(tl.int32, bitcast=True) & 0xFF, rounded)
    return tl.where(x == x, rounded | ((bits >> 24) & 0x80), 0x7F)

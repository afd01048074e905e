"""The numbers of an 8-bit KV cache in Triton: rounded to bytes when they are written, widened in registers when they are read.

The specification is `reference/attention/kv_format.py`. Kernels see bytes, or words of two of them, and none of Triton's
own 8-bit types, which exist from compute capability 8.9 on.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl

from streamserve_kernels.launch import capability
from streamserve_kernels.reference.attention.kv_format import UNSCALED, KvScales, is_eight_bit

# From compute capability 8.9 on there is an instruction for e4m3. Elsewhere, and for e5m2, which is the upper half of an fp16
# number, bytes go to the top of 16 bits; of e4m3 the exponent and mantissa move into place from there, which divides by 2^8,
# and makes its NaN 480.
_E5M2_WORDS = tl.constexpr("""{
prmt.b32 $0, $2, 0, 0x2404;
and.b32 $1, $2, 0xff00ff00;
}""")
_E5M2_BYTES = tl.constexpr("""{
prmt.b32 $0, $2, 0, 0x1404;
prmt.b32 $1, $2, 0, 0x3424;
}""")
_E4M3_WORDS = tl.constexpr("""{
.reg .b32 x;
.reg .b16 first, second;
prmt.b32 x, $2, 0, 0x3120;
mov.b32 {first, second}, x;
cvt.rn.f16x2.e4m3x2 $0, first;
cvt.rn.f16x2.e4m3x2 $1, second;
}""")
_E4M3_BYTES = tl.constexpr("""{
.reg .b16 first, second;
mov.b32 {first, second}, $2;
cvt.rn.f16x2.e4m3x2 $0, first;
cvt.rn.f16x2.e4m3x2 $1, second;
}""")
_E4M3_BITS = """{{
.reg .b32 a, b, s, t, factor;
mov.b32 factor, 0x5c005c00;
prmt.b32 a, $2, 0, {first};
prmt.b32 b, $2, 0, {second};
shr.u32 s, a, 1;
shr.u32 t, b, 1;
and.b32 s, s, 0x3f803f80;
and.b32 t, t, 0x3f803f80;
lop3.b32 a, a, 0x80008000, s, 0xEA;
lop3.b32 b, b, 0x80008000, t, 0xEA;
mul.rn.f16x2 $0, a, factor;
mul.rn.f16x2 $1, b, factor;
}}"""
_E4M3_WORDS_OF_BITS = tl.constexpr(_E4M3_BITS.format(first="0x2404", second="0x3414"))
_E4M3_BYTES_OF_BITS = tl.constexpr(_E4M3_BITS.format(first="0x1404", second="0x3424"))


class KvFormat(NamedTuple):
    """How a kernel takes the cache of a layer.

    name         "e4m3" or "e5m2"; None for numbers of the model's dtype, without scales
    widens_by    how 8-bit floats become fp16: "conversion" by an instruction, "bits", or in Triton's interpreter "arithmetic"
    key_inverse  what keys are multiplied by before they are rounded; value_inverse values
    key_scale    what a score is multiplied by; value_scale a weighted sum of values
    """

    name: str | None
    widens_by: str | None = None
    key_inverse: float | None = None
    value_inverse: float | None = None
    key_scale: float = 1.0
    value_scale: float | None = None


_NAMES = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2"}


def kv_format(cache: torch.Tensor, scales: KvScales | None) -> KvFormat:
    """The format of a cache; `scales` are those of 8-bit floats, None for 1."""
    name = _NAMES.get(cache.dtype)
    if name is None:
        return KvFormat(None)
    key, value = scales or UNSCALED
    return KvFormat(name, _widening(capability(cache.device)), 1.0 / key, 1.0 / value, key, value)


def _widening(capability: tuple[int, int]) -> str:
    if capability >= (8, 9):
        return "conversion"
    return "bits" if capability > (0, 0) else "arithmetic"


def in_bytes(cache: torch.Tensor) -> torch.Tensor:
    """A view of an 8-bit cache as bytes; others as they are."""
    return cache.view(torch.uint8) if is_eight_bit(cache.dtype) else cache


def in_words(cache: torch.Tensor) -> torch.Tensor:
    """A view of an 8-bit cache as words of two numbers, which the matrix units' loads can transpose; others as they are."""
    return cache.view(torch.int16) if is_eight_bit(cache.dtype) else cache


@triton.jit
def _half(byte, FORMAT: tl.constexpr):
    """Bytes, as int32, in fp16."""
    if FORMAT == "e4m3":
        bits = ((byte & 0x80) << 8) | ((byte & 0x7F) << 7)
        half = (bits.to(tl.int16).to(tl.float16, bitcast=True) * 256.0).to(tl.float16)
    else:
        half = (byte << 8).to(tl.int16).to(tl.float16, bitcast=True)
    return half


@triton.jit
def widen_bytes(stored, FORMAT: tl.constexpr, BY: tl.constexpr):
    """Bytes in fp16. BY  `KvFormat.widens_by`"""
    if BY == "arithmetic":
        wide = _half(stored.to(tl.int32), FORMAT)
    else:
        e4m3: tl.constexpr = _E4M3_BYTES if BY == "conversion" else _E4M3_BYTES_OF_BITS
        ptx: tl.constexpr = e4m3 if FORMAT == "e4m3" else _E5M2_BYTES
        wide = tl.inline_asm_elementwise(ptx, "=r,=r,r", [stored], dtype=tl.float16, is_pure=True, pack=4)
    return wide


@triton.jit
def widen_words(words, FORMAT: tl.constexpr, BY: tl.constexpr):
    """The first and the second numbers of words in fp16. BY  `KvFormat.widens_by`"""
    if BY == "arithmetic":
        both = words.to(tl.int32)
        first, second = _half(both & 0xFF, FORMAT), _half((both >> 8) & 0xFF, FORMAT)
    else:
        e4m3: tl.constexpr = _E4M3_WORDS if BY == "conversion" else _E4M3_WORDS_OF_BITS
        ptx: tl.constexpr = e4m3 if FORMAT == "e4m3" else _E5M2_WORDS
        first, second = tl.inline_asm_elementwise(ptx, "=r,=r,r", [words], dtype=(tl.float16, tl.float16), is_pure=True, pack=2)
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

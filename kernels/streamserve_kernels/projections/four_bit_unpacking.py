"""Tiles of 16 rows and 64 columns of four-bit numbers, unpacked in registers as the matrix units take them.

A lane has 16 bytes of a tile, the numbers that the matrix units take from it (`pack` of the reference): none of them moves to
another lane. Integers become floats as the mantissa of 128 (1024 in fp16), from which 128 and the zero point are
subtracted, exactly; e2m1 numbers become bf16 by shifts and a product that corrects their exponent.
"""

from __future__ import annotations

import triton
import triton.language as tl

# What has been joined counts as half as wide when Triton 3.6 chooses how many columns of an operand a lane holds.
IN_FOURS = tuple(map(int, triton.__version__.split(".")[:2])) <= (3, 6)


@triton.jit
def _in_columns(q0, q1, q2, q3, q4, q5, q6, q7, IN_FOURS: tl.constexpr):
    """What words [tiles, 8, 4, 4] hold, in their order, as [tiles, 16, 64]."""
    # [tiles, 8, 4, word, even or odd, half of rows, half of columns]
    numbers = tl.join(tl.join(tl.join(q0, q1), tl.join(q2, q3)), tl.join(tl.join(q4, q5), tl.join(q6, q7)))
    if IN_FOURS:
        numbers = tl.permute(numbers, (0, 5, 1, 3, 2, 6, 4))
    else:
        numbers = tl.permute(numbers, (0, 5, 1, 3, 6, 2, 4))
    return tl.reshape(numbers, [q0.shape[0], 16, 64])


# $0 to $7: numbers of rows g and g + 8 in turn, of an even and an odd column; $8 the word, $9 and $10 the rows' zero points, as
# 128 (1024) + zero in both halves.
_INTEGERS = """{{
.reg .b32 a, b, c, d, one, magic;
mov.b32 one, {one};
mov.b32 magic, {magic};
shr.u32 b, $8, 4;
shr.u32 c, $8, 8;
shr.u32 d, $8, 12;
lop3.b32 a, $8, 0x000f000f, magic, 0xEA;
lop3.b32 b, b, 0x000f000f, magic, 0xEA;
lop3.b32 c, c, 0x000f000f, magic, 0xEA;
lop3.b32 d, d, 0x000f000f, magic, 0xEA;
fma.rn.{kind}x2 a, a, one, $9;
fma.rn.{kind}x2 b, b, one, $10;
fma.rn.{kind}x2 c, c, one, $9;
fma.rn.{kind}x2 d, d, one, $10;
mov.b32 {{$0, $1}}, a;
mov.b32 {{$2, $3}}, b;
mov.b32 {{$4, $5}}, c;
mov.b32 {{$6, $7}}, d;
}}"""
_INTEGERS_BF16 = tl.constexpr(_INTEGERS.format(kind="bf16", magic="0x43004300", one="0x3f803f80"))
_INTEGERS_FP16 = tl.constexpr(_INTEGERS.format(kind="f16", magic="0x64006400", one="0x3c003c00"))
_CONSTRAINTS = tl.constexpr("=h,=h,=h,=h,=h,=h,=h,=h,r,r,r")


# Negative 128 (1024) twice, below which a zero point is subtracted.
_BASE_BF16 = tl.constexpr(0xC300C300 - (1 << 32))
_BASE_FP16 = tl.constexpr(0xE400E400 - (1 << 32))


@triton.jit
def unpack_integers(words, zero, zero_below, PACKED: tl.constexpr, IN_FOURS: tl.constexpr, TO: tl.constexpr):
    """Numbers q - zero of words [tiles, 8, 4, 4], as [tiles, 16, 64].

    zero, zero_below  int32, broadcastable to the words: of rows 0 to 7 and of 8 to 15
    PACKED            by pairs, with instructions of the GPU; else one at a time
    IN_FOURS          columns are called so that the compiler, which gives a lane four side by side, need not move them. Else
                      it gives it two and two, and columns stay in order
    """
    if PACKED:
        if tl.float16 == TO:
            q0, q1, q2, q3, q4, q5, q6, q7 = tl.inline_asm_elementwise(
                _INTEGERS_FP16, _CONSTRAINTS, [words, _BASE_FP16 + zero * 0x00010001, _BASE_FP16 + zero_below * 0x00010001],
                dtype=(tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16),
                is_pure=True, pack=1,
            )  # fmt: skip
        else:
            q0, q1, q2, q3, q4, q5, q6, q7 = tl.inline_asm_elementwise(
                _INTEGERS_BF16, _CONSTRAINTS, [words, _BASE_BF16 + zero * 0x00010001, _BASE_BF16 + zero_below * 0x00010001],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
                is_pure=True, pack=1,
            )  # fmt: skip
    else:
        q0 = ((words & 15) - zero).to(TO)
        q1 = (((words >> 16) & 15) - zero).to(TO)
        q2 = (((words >> 4) & 15) - zero_below).to(TO)
        q3 = (((words >> 20) & 15) - zero_below).to(TO)
        q4 = (((words >> 8) & 15) - zero).to(TO)
        q5 = (((words >> 24) & 15) - zero).to(TO)
        q6 = (((words >> 12) & 15) - zero_below).to(TO)
        q7 = (((words >> 28) & 15) - zero_below).to(TO)
    return _in_columns(q0, q1, q2, q3, q4, q5, q6, q7, IN_FOURS)


# As above, times $11 and $12, the rows' scales in both halves.
_SCALED = """{{
.reg .b32 a, b, c, d, one, magic, none;
mov.b32 one, {one};
mov.b32 magic, {magic};
mov.b32 none, 0x80008000;
shr.u32 b, $8, 4;
shr.u32 c, $8, 8;
shr.u32 d, $8, 12;
lop3.b32 a, $8, 0x000f000f, magic, 0xEA;
lop3.b32 b, b, 0x000f000f, magic, 0xEA;
lop3.b32 c, c, 0x000f000f, magic, 0xEA;
lop3.b32 d, d, 0x000f000f, magic, 0xEA;
fma.rn.{kind}x2 a, a, one, $9;
fma.rn.{kind}x2 b, b, one, $10;
fma.rn.{kind}x2 c, c, one, $9;
fma.rn.{kind}x2 d, d, one, $10;
fma.rn.{kind}x2 a, a, $11, none;
fma.rn.{kind}x2 b, b, $12, none;
fma.rn.{kind}x2 c, c, $11, none;
fma.rn.{kind}x2 d, d, $12, none;
mov.b32 {{$0, $1}}, a;
mov.b32 {{$2, $3}}, b;
mov.b32 {{$4, $5}}, c;
mov.b32 {{$6, $7}}, d;
}}"""
_SCALED_BF16 = tl.constexpr(_SCALED.format(kind="bf16", magic="0x43004300", one="0x3f803f80"))
_SCALED_FP16 = tl.constexpr(_SCALED.format(kind="f16", magic="0x64006400", one="0x3c003c00"))
_SCALED_CONSTRAINTS = tl.constexpr("=h,=h,=h,=h,=h,=h,=h,=h,r,r,r,r,r")


@triton.jit
def _twice(scale, TO: tl.constexpr):
    """A scale in both halves of a word."""
    return scale.to(TO).to(tl.uint16, bitcast=True).to(tl.int32) * 0x00010001


@triton.jit
def _scaled(digits, zero, scale, TO: tl.constexpr):
    return (((digits & 15) - zero).to(tl.float32) * scale.to(TO).to(tl.float32)).to(TO)


@triton.jit
def unpack_scaled(
    words, scale, scale_below, zero, zero_below, PACKED: tl.constexpr, IN_FOURS: tl.constexpr, TO: tl.constexpr
):  # fmt: skip
    """Numbers scale * (q - zero) of words [tiles, 8, 4, 4], rounded, as [tiles, 16, 64].

    scale, scale_below  broadcastable to the words: of rows 0 to 7 and of 8 to 15
    zero, zero_below    the same, integers
    PACKED, IN_FOURS    as for `unpack_integers`
    """
    zero, zero_below = zero.to(tl.int32), zero_below.to(tl.int32)
    if PACKED:
        scale, scale_below = _twice(scale, TO), _twice(scale_below, TO)
        if tl.float16 == TO:
            q0, q1, q2, q3, q4, q5, q6, q7 = tl.inline_asm_elementwise(
                _SCALED_FP16, _SCALED_CONSTRAINTS,
                [words, _BASE_FP16 + zero * 0x00010001, _BASE_FP16 + zero_below * 0x00010001, scale, scale_below],
                dtype=(tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16, tl.float16),
                is_pure=True, pack=1,
            )  # fmt: skip
        else:
            q0, q1, q2, q3, q4, q5, q6, q7 = tl.inline_asm_elementwise(
                _SCALED_BF16, _SCALED_CONSTRAINTS,
                [words, _BASE_BF16 + zero * 0x00010001, _BASE_BF16 + zero_below * 0x00010001, scale, scale_below],
                dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
                is_pure=True, pack=1,
            )  # fmt: skip
    else:
        q0, q1 = _scaled(words, zero, scale, TO), _scaled(words >> 16, zero, scale, TO)
        q2, q3 = _scaled(words >> 4, zero_below, scale_below, TO), _scaled(words >> 20, zero_below, scale_below, TO)
        q4, q5 = _scaled(words >> 8, zero, scale, TO), _scaled(words >> 24, zero, scale, TO)
        q6, q7 = _scaled(words >> 12, zero_below, scale_below, TO), _scaled(words >> 28, zero_below, scale_below, TO)
    return _in_columns(q0, q1, q2, q3, q4, q5, q6, q7, IN_FOURS)


# As above; $9 and $10 are factors of the rows' blocks, times 2 ** 126: a number's bits stand at the top of a mantissa and at
# the bottom of an exponent, which is that much too small.
_E2M1 = tl.constexpr("""{
.reg .b32 a, b, c, d, s, t, u, v, z;
mov.b32 z, 0x80008000;
shl.b32 a, $8, 6;
shl.b32 b, $8, 2;
shr.u32 c, $8, 2;
shr.u32 d, $8, 6;
shl.b32 s, $8, 12;
shl.b32 t, $8, 8;
shl.b32 u, $8, 4;
and.b32 a, a, 0x01c001c0;
and.b32 b, b, 0x01c001c0;
and.b32 c, c, 0x01c001c0;
and.b32 d, d, 0x01c001c0;
lop3.b32 a, s, 0x80008000, a, 0xEA;
lop3.b32 b, t, 0x80008000, b, 0xEA;
lop3.b32 c, u, 0x80008000, c, 0xEA;
lop3.b32 d, $8, 0x80008000, d, 0xEA;
fma.rn.bf16x2 a, a, $9, z;
fma.rn.bf16x2 b, b, $10, z;
fma.rn.bf16x2 c, c, $9, z;
fma.rn.bf16x2 d, d, $10, z;
mov.b32 {$0, $1}, a;
mov.b32 {$2, $3}, b;
mov.b32 {$4, $5}, c;
mov.b32 {$6, $7}, d;
}""")


@triton.jit
def _e2m1(digits, exponent, TO: tl.constexpr):
    """Numbers of digits, of which higher bits are not looked at, times 2 ** (exponent - 127)."""
    size = (digits >> 1) & 3
    half = (digits & 1).to(tl.float32) * 0.5
    number = tl.where(size == 0, half, (half + 1.0) * tl.exp2(size.to(tl.float32) - 1.0))
    return (tl.where((digits & 8) == 0, number, -number) * tl.exp2(exponent.to(tl.float32) - 127.0)).to(TO)


@triton.jit
def unpack_e2m1(words, exponent, exponent_below, PACKED: tl.constexpr, IN_FOURS: tl.constexpr, TO: tl.constexpr):
    """Numbers of e2m1 times powers of two, of words [tiles, 8, 4, 4], as [tiles, 16, 64].

    exponent, exponent_below  int32 plus 127, no more than 128, broadcastable to the words: of rows 0 to 7 and of 8 to 15
    PACKED                    by pairs, with instructions of the GPU, to bf16; else one at a time
    IN_FOURS                  as for `unpack_integers`
    """
    if PACKED:
        q0, q1, q2, q3, q4, q5, q6, q7 = tl.inline_asm_elementwise(
            _E2M1, _CONSTRAINTS, [words, (exponent + 126) * 0x00800080, (exponent_below + 126) * 0x00800080],
            dtype=(tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16, tl.bfloat16),
            is_pure=True, pack=1,
        )  # fmt: skip
    else:
        q0 = _e2m1(words, exponent, TO)
        q1 = _e2m1(words >> 16, exponent, TO)
        q2 = _e2m1(words >> 4, exponent_below, TO)
        q3 = _e2m1(words >> 20, exponent_below, TO)
        q4 = _e2m1(words >> 8, exponent, TO)
        q5 = _e2m1(words >> 24, exponent, TO)
        q6 = _e2m1(words >> 12, exponent_below, TO)
        q7 = _e2m1(words >> 28, exponent_below, TO)
    return _in_columns(q0, q1, q2, q3, q4, q5, q6, q7, IN_FOURS)


@triton.jit
def operand(parts, SLICES: tl.constexpr, IN_FOURS: tl.constexpr, TO: tl.constexpr):
    """The second operand [tiles, 64, 8] of what `quarters` returned."""
    x0, x1, x2, x3 = parts
    # [tiles, 8, 4, half of columns, even or odd, word // 2, word % 2]
    x = tl.join(tl.join(x0.to(TO), x2.to(TO)), tl.join(x1.to(TO), x3.to(TO)))
    x = tl.reshape(x, [SLICES, 8, 4, 2, 2, 2, 2])
    if IN_FOURS:
        x = tl.permute(x, (0, 5, 6, 2, 3, 4, 1))
    else:
        x = tl.permute(x, (0, 5, 6, 3, 2, 4, 1))
    return tl.reshape(x, [SLICES, 64, 8])


@triton.jit
def lane_columns(lane):
    """Columns [lanes, 4] that a lane multiplies of the first 16 of its tile, warp by warp a tile of 64."""
    fours = tl.arange(0, 4)[None, :]
    return (lane // 32 * 64 + lane % 4 * 2)[:, None] + fours // 2 * 8 + fours % 2


@triton.jit
def quarters(ptrs, mask, columns, first, K: tl.constexpr):
    """Columns [lanes, 4] of each lane, the four in each 16 columns of its tile, which begins `first` columns on."""
    x0 = tl.load(ptrs + first, mask=mask & (columns + first < K), other=0.0)
    x1 = tl.load(ptrs + first + 16, mask=mask & (columns + first + 16 < K), other=0.0)
    x2 = tl.load(ptrs + first + 32, mask=mask & (columns + first + 32 < K), other=0.0)
    x3 = tl.load(ptrs + first + 48, mask=mask & (columns + first + 48 < K), other=0.0)
    return x0, x1, x2, x3

"""Weights of 8-bit floats in wider types: in registers, for kernels that multiply so, and in memory.

One row is multiplied so everywhere, more rows on devices without products of 8-bit floats; those of compute capability below
8.9 do not even convert them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.launch import capability, dependent_launch, kernel
from streamserve_kernels.reference.projections.fp8 import BLOCK, Fp8Weight

_BLOCK = tl.constexpr(BLOCK)

# A byte goes to the top of each 16 bits, sign, exponent and mantissa from there into place; a product corrects the exponent.
# The compilers' own conversion to bf16 goes one number at a time.
_WIDEN = """{{
.reg .b32 a, b, s, t, m, z;
mov.b32 m, {factor};
mov.b32 z, 0x80008000;
prmt.b32 a, $2, 0, 0x1404;
prmt.b32 b, $2, 0, 0x3424;
shr.u32 s, a, {shift};
shr.u32 t, b, {shift};
and.b32 s, s, {mask};
and.b32 t, t, {mask};
lop3.b32 a, a, 0x80008000, s, 0xEA;
lop3.b32 b, b, 0x80008000, t, 0xEA;
fma.rn.{kind}x2 $0, a, m, z;
fma.rn.{kind}x2 $1, b, m, z;
}}"""
_TO_BF16 = tl.constexpr(_WIDEN.format(kind="bf16", shift=4, mask="0x07f007f0", factor="0x7b807b80"))
_TO_FP16 = tl.constexpr(_WIDEN.format(kind="f16", shift=1, mask="0x3f803f80", factor="0x5c005c00"))


@triton.jit
def widen(values, BITS: tl.constexpr, TO: tl.constexpr):
    """e4m3 numbers, or with BITS their bytes, in a wider type."""
    if not BITS:
        return values.to(TO)
    if tl.float16 == TO:
        return tl.inline_asm_elementwise(_TO_FP16, "=r,=r,r", [values], dtype=tl.float16, is_pure=True, pack=4)
    return tl.inline_asm_elementwise(_TO_BF16, "=r,=r,r", [values], dtype=tl.bfloat16, is_pure=True, pack=4).to(TO)


@kernel()
def _fp8_expand_kernel(
    values_ptr, scale_ptr, out_ptr, N, K,
    BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, SCALES: tl.constexpr, BITS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """A tile of the weight, times its scales."""
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    lanes = tl.program_id(1) * BLOCK_K + tl.arange(0, BLOCK_K)
    mask = (rows < N)[:, None] & (lanes < K)[None, :]
    offsets = rows.to(tl.int64)[:, None] * K + lanes[None, :]
    wide = widen(tl.load(values_ptr + offsets, mask=mask, other=0.0), BITS, out_ptr.dtype.element_ty).to(tl.float32)
    if SCALES == 1:
        wide *= tl.load(scale_ptr + rows, mask=rows < N, other=0.0)[:, None]
    else:
        blocks = (rows // _BLOCK * SCALES)[:, None] + (lanes // _BLOCK)[None, :]
        wide *= tl.load(scale_ptr + blocks, mask=mask, other=0.0)
    tl.store(out_ptr + offsets, wide.to(out_ptr.dtype.element_ty), mask=mask)


def has_products(device: torch.device) -> bool:
    """Whether a device multiplies 8-bit floats; Triton's interpreter does."""
    return device.type == "cpu" or capability(device) >= (8, 9)


def has_conversion(device: torch.device) -> bool:
    """Whether a device converts 8-bit floats; if not, their bits are moved."""
    return has_products(device)


def bytes_of(values: torch.Tensor, bits: bool) -> torch.Tensor:
    """e4m3 numbers as a kernel takes them, which is as bytes where it widens them bit by bit."""
    return values.view(torch.uint8) if bits else values


def expand(weight: Fp8Weight, dtype: torch.dtype, *, bits: bool) -> torch.Tensor:
    """What a weight stands for, [out, in] of this dtype. bits: its device has no conversion of 8-bit floats."""
    outer, inner = weight.values.shape
    out = weight.values.new_empty(outer, inner, dtype=dtype)
    _fp8_expand_kernel[(triton.cdiv(outer, 16), triton.cdiv(inner, 256))](
        bytes_of(weight.values, bits), weight.scale, out, outer, inner,
        BLOCK_N=16, BLOCK_K=256, SCALES=weight.scale.shape[1], BITS=bits, num_warps=4, **dependent_launch(out.device),
    )  # fmt: skip
    return out

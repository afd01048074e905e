"""Activations rounded to 8-bit floats, with the norm before, in one pass. `Fp8Weight` says what scales are."""

from __future__ import annotations

import torch
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.launch import dependent_launch, kernel, power_of_two
from streamserve_kernels.reference.projections.fp8 import BLOCK, DTYPE, LARGEST

REMAINDER = 16.0
"""By it the largest remainder, half a step of the largest numbers, comes close to the end of the range."""

_LARGEST, _REMAINDER = tl.constexpr(LARGEST), tl.constexpr(REMAINDER)
_LEAST = tl.constexpr(1e-12)
"""Scales are no smaller, so that rows of zeros are zeros."""


@kernel(do_not_specialize=["room"])
def _quantize_kernel(
    x_ptr, norm_ptr, input_scale_ptr, out_ptr, scale_ptr, room, width, eps,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, PARTS: tl.constexpr, NORM: tl.constexpr, STATIC: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Round one row, or rms_norm of it, in PARTS. GROUP columns have a scale; 0 for one scale a row."""
    if PDL:
        cuda.gdc_launch_dependents()
    row = tl.program_id(0)
    lanes = tl.arange(0, BLOCK)
    inside = lanes < width
    offsets = row.to(tl.int64) * width + lanes
    if NORM:
        norm = tl.load(norm_ptr + lanes, mask=inside, other=0.0).to(tl.float32)
    if PDL:
        cuda.gdc_wait()
    x = tl.load(x_ptr + offsets, mask=inside, other=0.0).to(tl.float32)
    if NORM:
        x = x * tl.rsqrt(tl.sum(x * x, axis=0) / width + eps) * norm
    if GROUP:
        groups = tl.arange(0, BLOCK // GROUP)
        parts = tl.reshape(x, [BLOCK // GROUP, GROUP])
        scales = tl.maximum(tl.max(tl.abs(parts), axis=1) / _LARGEST, _LEAST)
        x = tl.reshape(parts * (1.0 / scales)[:, None], [BLOCK])
        # A column for each group, as cuBLAS wants them.
        tl.store(scale_ptr + groups * room + row, scales, mask=groups * GROUP < width)
    else:
        if STATIC:
            scale = tl.load(input_scale_ptr)
        else:
            scale = tl.maximum(tl.max(tl.abs(x), axis=0) / _LARGEST, _LEAST)
        # A division of each number would take longer than reading it.
        x = tl.minimum(tl.maximum(x * (1.0 / scale), -_LARGEST), _LARGEST)
        tl.store(scale_ptr + row, scale)
    rounded = x.to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + offsets, rounded, mask=inside)
    if PARTS == 2:
        remainder = tl.minimum(tl.maximum((x - rounded.to(tl.float32)) * _REMAINDER, -_LARGEST), _LARGEST)
        remainder_ptrs = out_ptr + (room + row).to(tl.int64) * width + lanes
        tl.store(remainder_ptrs, remainder.to(out_ptr.dtype.element_ty), mask=inside)


def quantize(
    x: torch.Tensor,
    *,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    input_scale: torch.Tensor | None = None,
    in_groups: bool = False,
    parts: int = 1,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, or rms_norm(x), as 8-bit floats.

    x            [rows, n]  bf16|fp16
    input_scale  [1] fp32: the scale of all rows; without one each has its own
    in_groups    128 columns share a scale
    parts        8-bit floats that a number is the sum of, 1 or 2
    returns      [rows, n] float8_e4m3fn, or [2 rows, n] with the second parts after all first ones, and scales in fp32: [rows],
                 or [ceil(n / 128), rows]; in groups, the number of rows is rounded up to a multiple of 4, as cuBLAS wants it,
                 and what is beyond is not written
    """
    x = x.contiguous()
    rows, width = x.shape
    room = -(-rows // 4) * 4 if in_groups else rows
    out = torch.empty(parts * room, width, dtype=DTYPE, device=x.device)
    scales = (-(-width // BLOCK), room) if in_groups else (rows,)
    scale = torch.empty(scales, dtype=torch.float32, device=x.device)
    block = power_of_two(width, least=BLOCK)
    _quantize_kernel[(rows,)](
        x, norm_weight, input_scale, out, scale, room, width, eps,
        BLOCK=block, GROUP=BLOCK if in_groups else 0, PARTS=parts, NORM=norm_weight is not None,
        STATIC=input_scale is not None, num_warps=max(1, min(16, block // 512)), **dependent_launch(x.device),
    )  # fmt: skip
    return out, scale

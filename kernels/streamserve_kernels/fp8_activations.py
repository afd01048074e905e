"""Around products of 8-bit floats: activations rounded to 8 bits, with the norm before, and what follows a product of cuBLAS.

One pass over memory each. `reference/fp8.py` says what scales are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton.language as tl
from triton.language.extra import cuda

from .launch import dependent_launch, kernel, power_of_two
from .norm_rope import activate
from .reference.fp8 import BLOCK, DTYPE, LARGEST

_LARGEST = tl.constexpr(LARGEST)
_LEAST = tl.constexpr(1e-12)
"""Scales are no smaller, so that rows of zeros are zeros."""


class Epilogue(NamedTuple):
    """What follows a product: residual + activation(product + bias).

    bias        [n], or [2 n] with an activation, which gates the first half of a row and multiplies it with the second
    residual    [rows, n]
    activation  "none", or a name that `activate` knows
    """

    bias: torch.Tensor | None = None
    residual: torch.Tensor | None = None
    activation: str = "none"

    @property
    def gated(self) -> bool:
        return self.activation != "none"

    def constants(self) -> dict[str, bool | str]:
        """Arguments by which kernels are specialized."""
        return {"BIAS": self.bias is not None, "RESIDUAL": self.residual is not None, "ACTIVATION": self.activation}


@kernel(do_not_specialize=["room"])
def _quantize_kernel(
    x_ptr, norm_ptr, input_scale_ptr, out_ptr, scale_ptr, room, width, eps,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, NORM: tl.constexpr, STATIC: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Round one row, or rms_norm of it. GROUP columns have a scale; 0 for one scale a row."""
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
        x = tl.reshape(parts / scales[:, None], [BLOCK])
        # A column for each group, as cuBLAS wants them.
        tl.store(scale_ptr + groups * room + row, scales, mask=groups * GROUP < width)
    else:
        if STATIC:
            scale = tl.load(input_scale_ptr)
        else:
            scale = tl.maximum(tl.max(tl.abs(x), axis=0) / _LARGEST, _LEAST)
        x = tl.minimum(tl.maximum(x / scale, -_LARGEST), _LARGEST)
        tl.store(scale_ptr + row, scale)
    tl.store(out_ptr + offsets, x.to(out_ptr.dtype.element_ty), mask=inside)


@kernel()
def _finish_kernel(
    product_ptr, x_scale_ptr, scale_ptr, bias_ptr, residual_ptr, out_ptr, width,
    BLOCK: tl.constexpr, SCALED: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Scales, bias, activation and residual of BLOCK elements of one row of the output."""
    row = tl.program_id(0).to(tl.int64)
    lanes = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = lanes < width
    gated: tl.constexpr = ACTIVATION != "none"
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    product_ptrs = product_ptr + row * (2 * width if gated else width) + lanes
    result = tl.load(product_ptrs, mask=inside, other=0.0).to(tl.float32)
    if SCALED:
        x_scale = tl.load(x_scale_ptr + row)
        result *= x_scale * tl.load(scale_ptr + lanes, mask=inside, other=0.0)
    if BIAS:
        result += tl.load(bias_ptr + lanes, mask=inside, other=0.0).to(tl.float32)
    if gated:
        up = tl.load(product_ptrs + width, mask=inside, other=0.0).to(tl.float32)
        if SCALED:
            up *= x_scale * tl.load(scale_ptr + width + lanes, mask=inside, other=0.0)
        if BIAS:
            up += tl.load(bias_ptr + width + lanes, mask=inside, other=0.0).to(tl.float32)
        result = activate(result, up, ACTIVATION)
    if RESIDUAL:
        result += tl.load(residual_ptr + row * width + lanes, mask=inside, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * width + lanes, result.to(out_ptr.dtype.element_ty), mask=inside)


def quantize(
    x: torch.Tensor,
    *,
    norm_weight: torch.Tensor | None = None,
    eps: float = 0.0,
    input_scale: torch.Tensor | None = None,
    in_groups: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """x, or rms_norm(x), as 8-bit floats.

    x            [rows, n]  bf16|fp16
    input_scale  [1] fp32: the scale of all rows; without one each has its own
    in_groups    128 columns share a scale
    returns      [rows, n] float8_e4m3fn, and scales in fp32: [rows], or [ceil(n / 128), rows]; in groups, the number of rows is
                 rounded up to a multiple of 4, as cuBLAS wants it, and what is beyond is not written
    """
    x = x.contiguous()
    rows, width = x.shape
    room = -(-rows // 4) * 4 if in_groups else rows
    out = torch.empty(room, width, dtype=DTYPE, device=x.device)
    scales = (-(-width // BLOCK), room) if in_groups else (rows,)
    scale = torch.empty(scales, dtype=torch.float32, device=x.device)
    block = power_of_two(width, least=BLOCK)
    _quantize_kernel[(rows,)](
        x, norm_weight, input_scale, out, scale, room, width, eps,
        BLOCK=block, GROUP=BLOCK if in_groups else 0, NORM=norm_weight is not None, STATIC=input_scale is not None,
        num_warps=max(1, min(16, block // 512)), **dependent_launch(x.device),
    )  # fmt: skip
    return out, scale


def finish(
    product: torch.Tensor,
    dtype: torch.dtype,
    after: Epilogue,
    *,
    scales: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> torch.Tensor:
    """What follows a product, of product * scales.

    product  [rows, n], or [rows, 2 n] with an activation
    scales   of the rows [rows] and of the columns, both fp32
    returns  [rows, n] of this dtype
    """
    rows, columns = product.shape
    width = columns // 2 if after.gated else columns
    out = product.new_empty(rows, width, dtype=dtype)
    x_scale, scale = scales or (None, None)
    block = min(power_of_two(width), 2048)
    _finish_kernel[(rows, -(-width // block))](
        product, x_scale, scale, after.bias, after.residual, out, width,
        BLOCK=block, SCALED=scales is not None, **after.constants(),
        num_warps=max(1, block // 512), **dependent_launch(product.device),
    )  # fmt: skip
    return out

"""What follows a product in the same launch, or in a pass after one of cuBLAS: scales, bias, activation, residual."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.activations import activate
from streamserve_kernels.launch import dependent_launch, kernel, power_of_two


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


@triton.jit
def finish_products(
    sums, squares, columns, rows, bias_ptr, residual_ptr, out_ptr, M, N, eps,
    K: tl.constexpr, BLOCK_M: tl.constexpr,
    NORM: tl.constexpr, BIAS: tl.constexpr, RESIDUAL: tl.constexpr, ACTIVATION: tl.constexpr,
):  # fmt: skip
    """Scale, bias, activation and residual of products [columns, BLOCK_M]; gated ones hold the gate's columns, then up's."""
    if NORM:
        sums = sums * tl.rsqrt(squares / K + eps)[None, :]
    if ACTIVATION != "none":
        half: tl.constexpr = columns.shape[0]
        gate, up = tl.split(tl.permute(tl.reshape(sums, [2, half, BLOCK_M]), (1, 2, 0)))
        if BIAS:
            gate += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[:, None]
            up += tl.load(bias_ptr + N + columns, mask=columns < N, other=0.0).to(tl.float32)[:, None]
        sums = activate(gate, up, ACTIVATION)
    elif BIAS:
        sums += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[:, None]
    mask = (columns < N)[:, None] & (rows < M)[None, :]
    offsets = rows.to(tl.int64)[None, :] * N + columns[:, None]
    if RESIDUAL:
        sums += tl.load(residual_ptr + offsets, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + offsets, sums.to(out_ptr.dtype.element_ty), mask=mask)


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

"""Products with weights of 8-bit floats: which kernel multiplies, and what is fused with it.

* One row: everything is fused and activations are as they are. Without a norm, gate and blocks plain lanes multiply as fast as
  memory is read (one_row.py); with them they don't, and matrix units do (fp8_one_row.py).
* Up to `MOST_ROWS`: activations are rounded to 8 bits, in the pass that norms them, and up to `PRECISE_ROWS` to sums of two
  such numbers; bias, activation and residual are fused (fp8_rows.py).
* More: cuBLAS multiplies 8-bit floats, and one pass after that does the rest (epilogue.py).

Devices without products of 8-bit floats (compute capability below 8.9) multiply as wide as activations are: few rows with
weights that are widened in registers, many with all of the weight widened in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import ScalingType, scaled_mm

from streamserve_kernels.norms import rms_norm
from streamserve_kernels.projections import dense
from streamserve_kernels.projections import one_row as lanes
from streamserve_kernels.projections.epilogue import Epilogue, finish
from streamserve_kernels.projections.fp8_activations import quantize
from streamserve_kernels.projections.fp8_one_row import one_row
from streamserve_kernels.projections.fp8_rows import MOST_ROWS, PRECISE_ROWS, some_rows
from streamserve_kernels.projections.fp8_widen import expand, has_products
from streamserve_kernels.reference.projections.fp8 import Fp8Weight

MANY_ROWS = 1024
"""From here a product that scales rows and columns itself is faster than one that leaves it to a pass of its own."""


def multiply(x: Tensor, weight: Fp8Weight, after: Epilogue, norm_weight: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """x' @ weight.T and what follows, with x' = x or rms_norm(x)."""
    x, rows, dtype = x.contiguous(), x.shape[0], x.dtype
    is_narrow = has_products(x.device)
    if rows == 1 and is_narrow and norm_weight is None and not (after.gated or weight.has_blocks):
        return lanes.one_row(x, weight.values, after, scale=weight.scale)
    if rows == 1:
        return one_row(x, weight, after, bits=not is_narrow, norm_weight=norm_weight, eps=eps)
    if not is_narrow:
        x = x if norm_weight is None else rms_norm(x, norm_weight, eps)
        if rows <= MOST_ROWS:
            return some_rows(x, None, weight, dtype, after, bits=True, rows=rows)
        return finish(dense.linear(x, expand(weight, dtype, bits=True)), dtype, after)
    parts = 2 if rows <= PRECISE_ROWS else 1
    narrow, scale = quantize(
        x, norm_weight=norm_weight, eps=eps, input_scale=weight.input_scale, in_groups=weight.has_blocks, parts=parts
    )
    if rows <= MOST_ROWS:
        return some_rows(narrow, scale, weight, dtype, after, bits=False, rows=rows)
    if weight.has_blocks:
        return finish(_product_of_blocks(narrow, scale, weight)[:rows], dtype, after)
    if rows >= MANY_ROWS and after.residual is None and not after.gated and dtype is torch.bfloat16:
        return _scaled_product(narrow, scale, weight, after.bias)
    return finish(_product(narrow, weight), dtype, after, scales=(scale, weight.scale))


def _product(x: Tensor, weight: Fp8Weight) -> Tensor:
    """x @ values.T in bf16, without any scale."""
    one = torch.ones((), dtype=torch.float32, device=x.device)
    scales = (one, ScalingType.TensorWise, one, ScalingType.TensorWise)
    product: Tensor = scaled_mm(x, weight.values.t(), *scales, output_dtype=torch.bfloat16, use_fast_accum=True)
    return product


def _scaled_product(x: Tensor, x_scale: Tensor, weight: Fp8Weight, bias: Tensor | None) -> Tensor:
    """The product of all, in bf16."""
    scales = (x_scale[:, None], ScalingType.RowWise, weight.scale.t(), ScalingType.RowWise)
    product: Tensor = scaled_mm(x, weight.values.t(), *scales, bias=bias, output_dtype=torch.bfloat16, use_fast_accum=True)
    return product


def _product_of_blocks(x: Tensor, x_scale: Tensor, weight: Fp8Weight) -> Tensor:
    """x @ weight.T in bf16, with the scales of both."""
    scales = (x_scale.t(), ScalingType.BlockWise1x128, weight.scale.t(), ScalingType.BlockWise128x128)
    product: Tensor = scaled_mm(x, weight.values.t(), *scales, output_dtype=torch.bfloat16)
    return product

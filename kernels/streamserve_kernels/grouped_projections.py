"""Linear layers whose weights are 4-bit integers: which product, and what is fused with it. `reference/grouped.py` specifies.

Activations keep their precision. Up to `MOST_ROWS` weights are unpacked in registers (grouped_rows.py), and up to `FEW_ROWS` of
them the norm is part of that launch; for more, a weight is expanded in memory, and cuBLAS multiplies it.
"""

from __future__ import annotations

from torch import Tensor

from . import projections
from .fp8_activations import Epilogue, finish
from .grouped_rows import FEW_ROWS, expand, few_rows, some_rows
from .norm_rope import rms_norm
from .reference.grouped import GroupedWeight

MOST_ROWS = 512
"""More rows take longer to multiply by than expanding the weight for them."""


def linear(x: Tensor, weight: GroupedWeight, bias: Tensor | None = None) -> Tensor:
    """`reference.grouped.linear`."""
    return _multiply(x, weight, Epilogue(bias))


def linear_residual(x: Tensor, weight: GroupedWeight, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.grouped.linear_residual`."""
    return _multiply(x, weight, Epilogue(bias, residual.contiguous()))


def norm_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: GroupedWeight, bias: Tensor | None = None) -> Tensor:
    """`reference.grouped.norm_linear`."""
    return _multiply(x, weight, Epilogue(bias), norm_weight, eps)


def norm_gated_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: GroupedWeight, activation: str) -> Tensor:
    """`reference.grouped.norm_gated_linear`."""
    return _multiply(x, weight, Epilogue(activation=activation), norm_weight, eps)


def _multiply(x: Tensor, weight: GroupedWeight, after: Epilogue, norm_weight: Tensor | None = None, eps: float = 0.0) -> Tensor:
    is_few = x.shape[0] <= FEW_ROWS
    if norm_weight is not None and (not is_few or weight.order is not None):
        x, norm_weight = rms_norm(x, norm_weight, eps), None
    x = x.contiguous() if weight.order is None else x.index_select(1, weight.order)
    if is_few:
        return few_rows(x, weight, after, norm_weight=norm_weight, eps=eps)
    if x.shape[0] <= MOST_ROWS:
        return some_rows(x, weight, after)
    return finish(projections.linear(x, expand(weight, x.dtype)), x.dtype, after)

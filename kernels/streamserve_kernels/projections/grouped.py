"""Products with weights of 4-bit integers: which kernel multiplies, and what is fused with it.

Activations keep their precision. Up to `MOST_ROWS` weights are unpacked in registers (grouped_rows.py), and up to `FEW_ROWS` of
them the norm is part of that launch; for more, a weight is expanded in memory, and cuBLAS multiplies it.
"""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.norm_rope import rms_norm
from streamserve_kernels.projections import dense
from streamserve_kernels.projections.epilogue import Epilogue, finish
from streamserve_kernels.projections.grouped_rows import FEW_ROWS, expand, few_rows, some_rows
from streamserve_kernels.reference.grouped import GroupedWeight

MOST_ROWS = 512
"""More rows take longer to multiply by than expanding the weight for them."""


def multiply(x: Tensor, weight: GroupedWeight, after: Epilogue, norm_weight: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """x' @ weight.T and what follows, with x' = x or rms_norm(x)."""
    is_few = x.shape[0] <= FEW_ROWS
    if norm_weight is not None and (not is_few or weight.order is not None):
        x, norm_weight = rms_norm(x, norm_weight, eps), None
    x = x.contiguous() if weight.order is None else x.index_select(1, weight.order)
    if is_few:
        return few_rows(x, weight, after, norm_weight=norm_weight, eps=eps)
    if x.shape[0] <= MOST_ROWS:
        return some_rows(x, weight, after)
    return finish(dense.linear(x, expand(weight, x.dtype)), x.dtype, after)

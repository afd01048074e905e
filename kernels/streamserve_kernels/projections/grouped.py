"""Products with weights of 4-bit integers: which kernel multiplies, and what is fused with it.

Activations keep their precision. Weights are unpacked in registers, for one row (grouped_one_row.py), up to `FEW_ROWS`
(grouped_few_rows.py) and up to `MOST_ROWS` (grouped_some_rows.py); for more, a weight is expanded in memory, and cuBLAS
multiplies it.
"""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.norms import rms_norm
from streamserve_kernels.projections import dense
from streamserve_kernels.projections.epilogue import Epilogue, finish
from streamserve_kernels.projections.grouped_few_rows import FEW_ROWS, few_rows
from streamserve_kernels.projections.grouped_one_row import one_row
from streamserve_kernels.projections.grouped_some_rows import expand, some_rows
from streamserve_kernels.reference.projections.grouped import GroupedWeight

MOST_ROWS = 512
"""More rows take longer to multiply by than expanding the weight for them."""


def multiply(x: Tensor, weight: GroupedWeight, after: Epilogue, norm_weight: Tensor | None = None, eps: float = 0.0) -> Tensor:
    """x' @ weight.T and what follows, with x' = x or rms_norm(x)."""
    if norm_weight is not None and (x.shape[0] > 1 or weight.order is not None):
        # Not in the kernels of more rows, which have no time for it: unpacking takes as long as reading.
        x, norm_weight = rms_norm(x, norm_weight, eps), None
    x = x.contiguous() if weight.order is None else x.index_select(1, weight.order)
    if x.shape[0] == 1:
        return one_row(x, weight, after, norm_weight, eps)
    if x.shape[0] <= FEW_ROWS:
        return few_rows(x, weight, after)
    if x.shape[0] <= MOST_ROWS:
        return some_rows(x, weight, after)
    return finish(dense.linear(x, expand(weight, x.dtype)), x.dtype, after)

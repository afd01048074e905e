"""What experts made of tokens, weighed and added up."""

from __future__ import annotations

import torch
import triton.language as tl
from triton.language.extra import cuda

from streamserve_kernels.launch import dependent_launch, kernel, power_of_two
from streamserve_kernels.reference.experts import Routes


@kernel()
def _sum_kernel(
    made_ptr, ids_ptr, weights_ptr, sorted_ptr, residual_ptr, out_ptr, N, first_expert, num_experts,
    TOP_K: tl.constexpr, PARTIAL: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """BLOCK columns of one row: the residual, and the weighted sum of what its experts made of it.

    made_ptr  [rows * TOP_K, N], in the order of `sorted_ptr`, or of places
    With PARTIAL some experts are elsewhere, and their rows were not written.
    """
    if PDL:
        cuda.gdc_launch_dependents()
        cuda.gdc_wait()
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = columns < N
    total = tl.load(residual_ptr + row * N + columns, mask=inside, other=0.0).to(tl.float32)
    for index in tl.static_range(TOP_K):
        place = row * TOP_K + index
        weight = tl.load(weights_ptr + place)
        here = inside
        if PARTIAL:
            expert = tl.load(ids_ptr + place) - first_expert
            here = inside & (expert + columns * 0 >= 0) & (expert + columns * 0 < num_experts)
        if sorted_ptr is not None:
            place = tl.load(sorted_ptr + place).to(tl.int64)
        total += tl.load(made_ptr + place * N + columns, mask=here, other=0.0).to(tl.float32) * weight
    tl.store(out_ptr + row * N + columns, total.to(out_ptr.dtype.element_ty), mask=inside)


def weighted_sum(
    residual: torch.Tensor,
    made: torch.Tensor,
    routes: Routes,
    num_experts: int,
    first_expert: int,
    *,
    is_partial: bool,
    order: torch.Tensor | None = None,
) -> torch.Tensor:
    """residual + the weighted sum of what each token's experts made of it.

    made        [tokens * top_k, hidden]
    is_partial  some experts are elsewhere, and their rows were not written
    order       int32 [tokens * top_k], the row of `made` of each choice of each token; None where they are in order
    """
    (num_rows, top_k), hidden = routes.expert_ids.shape, residual.shape[1]
    out, block = torch.empty_like(residual, memory_format=torch.contiguous_format), min(power_of_two(hidden), 1024)
    _sum_kernel[(num_rows, -(-hidden // block))](
        made, routes.expert_ids, routes.weights, order, residual, out, hidden, first_expert, num_experts,
        TOP_K=top_k, PARTIAL=is_partial, BLOCK=block, num_warps=max(1, block // 256), **dependent_launch(made.device),
    )  # fmt: skip
    return out

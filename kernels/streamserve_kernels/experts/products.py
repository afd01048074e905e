"""Products of experts' weights with the tokens that go to each: gate and up with the activation, then down with the sum.

* One row: a program has some weight rows of one of its experts (one_row.py).
* More: a program has a tile of one expert's weight rows and some of its tokens (tiles.py). What experts make of a token is
  weighed and added up in a launch of its own (weighted_sum.py).

Each kind of weight has a file with its products. Tensors of one call live on one device; activations are bf16, fp16 or fp32,
products and sums fp32.
"""

from __future__ import annotations

import torch

from streamserve_kernels.experts import dense, fp8, mxfp4, one_row
from streamserve_kernels.experts.tiles import HeldTokens
from streamserve_kernels.experts.weighted_sum import weighted_sum
from streamserve_kernels.reference.experts import Routes
from streamserve_kernels.reference.quantized_experts import ExpertsWeight, Fp8ExpertsWeight, Mxfp4ExpertsWeight


def experts_residual(
    residual: torch.Tensor,
    routes: Routes,
    gate_up: ExpertsWeight,
    down: ExpertsWeight,
    activation: str,
    *,
    gate_up_bias: torch.Tensor | None = None,
    down_bias: torch.Tensor | None = None,
    first_expert: int = 0,
) -> torch.Tensor:
    """`reference.experts.experts_residual`, for routes that `norm_route` made; both weights are of one kind."""
    is_mxfp4, num_experts = isinstance(gate_up, Mxfp4ExpertsWeight), gate_up.shape[0]
    weights = gate_up, down, gate_up_bias, down_bias, activation
    if len(residual) == 1:
        alone = mxfp4 if is_mxfp4 else one_row
        total: torch.Tensor = alone.experts_residual(residual, routes, *weights, first_expert)
        return total
    held = HeldTokens.of(routes, num_experts, first_expert)
    kind = mxfp4 if is_mxfp4 else fp8 if isinstance(gate_up, Fp8ExpertsWeight) else dense
    made, order = kind.multiply(routes, held, *weights)
    return weighted_sum(residual, made, routes, num_experts, first_expert, is_partial=held.is_partial, order=order)

"""Products of experts' weights with the tokens that go to each: gate and up with the activation, then down with the sum.

* One row: a program has some weight rows of one of its experts.
* More: a program has a tile of one expert's weight rows and some of its tokens (tiles.py). What experts make of a token is
  weighed and added up in a launch of its own (weighted_sum.py).

Each kind of weight has a file with its products. Tensors of one call live on one device; activations are bf16, fp16 or fp32,
products and sums fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from streamserve_kernels.experts import dense, four_bits, fp8, one_row
from streamserve_kernels.experts.launches import Layer
from streamserve_kernels.experts.tiles import HeldTokens
from streamserve_kernels.experts.weighted_sum import weighted_sum
from streamserve_kernels.reference.experts import Routes
from streamserve_kernels.reference.quantized_experts import (
    ExpertsWeight,
    Fp8ExpertsWeight,
    GroupedExpertsWeight,
    Mxfp4ExpertsWeight,
)


class _Kind(NamedTuple):
    """What multiplies a kind of weight.

    one_row   residual + the weighted sum of what its experts make of a lone token
    multiply  what each held expert makes of its tokens, [places, hidden], and in which row each place is; None where in order
    """

    one_row: Callable[[torch.Tensor, Routes, Layer[Any]], torch.Tensor]
    multiply: Callable[[Routes, HeldTokens, Layer[Any]], tuple[torch.Tensor, torch.Tensor | None]]


_KINDS: dict[type[ExpertsWeight], _Kind] = {
    torch.Tensor: _Kind(one_row.experts_residual, dense.multiply),
    Fp8ExpertsWeight: _Kind(one_row.experts_residual, fp8.multiply),
    Mxfp4ExpertsWeight: _Kind(four_bits.experts_residual, four_bits.multiply),
    GroupedExpertsWeight: _Kind(four_bits.experts_residual, four_bits.multiply),
}


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
    layer = Layer(gate_up, down, gate_up_bias, down_bias, activation, first_expert)
    kind = next(kind for of, kind in _KINDS.items() if isinstance(gate_up, of))
    if len(residual) == 1:
        return kind.one_row(residual, routes, layer)
    held = HeldTokens.of(routes, layer.num_experts, first_expert)
    made, order = kind.multiply(routes, held, layer)
    return weighted_sum(residual, made, routes, layer.num_experts, first_expert, is_partial=held.is_partial, order=order)

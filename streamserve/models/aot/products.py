"""Products with oneDNN's weights, as operations that TorchInductor can compile with any layer's weights.

Inductor itself compiles oneDNN's products with weights that are constants of what it compiles, one layer's. These take the
weight as an argument (`lowerings`), so that all layers share their code.
"""

from __future__ import annotations

import torch
from torch import Tensor, library

from streamserve_kernels import blocked_linear, blocked_linear_residual


@library.custom_op("streamserve::blocked_linear", mutates_args=())
def compiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [rows, in] @ weight.T (+ bias) -> [rows, out]; the weight in oneDNN's layout. All bf16."""
    return blocked_linear(x, weight, bias)


@library.custom_op("streamserve::blocked_linear_residual", mutates_args=())
def compiled_linear_residual(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """residual [rows, out] + compiled_linear(x, weight, bias), rounded once."""
    # A copy: oneDNN sums into the residual itself.
    return blocked_linear_residual(x, weight, residual.clone(), bias)


@compiled_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@compiled_linear_residual.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(residual)

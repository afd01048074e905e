"""Linear layers and what is fused with them, on the device of their input and by the kind of their weight."""

from __future__ import annotations

from types import ModuleType
from typing import TypeAlias

import torch
from torch import Tensor

from streamserve_kernels.dispatch.areas import triton_area
from streamserve_kernels.reference.activations import Activation
from streamserve_kernels.reference.projections import dense, quantized
from streamserve_kernels.reference.projections.quantized import QuantizedWeight

LinearWeight: TypeAlias = Tensor | QuantizedWeight
"""What a linear layer multiplies with."""


def linear(x: Tensor, weight: LinearWeight, bias: Tensor | None = None) -> Tensor:
    """x @ weight.T + bias; see `reference.projections.dense`."""
    y: Tensor = _products(x, weight).linear(x, weight, bias)
    return y


def linear_residual(x: Tensor, weight: LinearWeight, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """residual + x @ weight.T + bias, possibly in place of residual; see `reference.projections.dense`."""
    y: Tensor = _products(x, weight).linear_residual(x, weight, residual, bias)
    return y


def norm_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: LinearWeight, bias: Tensor | None = None) -> Tensor:
    """linear(rms_norm(x)); see `reference.projections.dense`."""
    y: Tensor = _products(x, weight).norm_linear(x, norm_weight, eps, weight, bias)
    return y


def norm_gated_linear(
    x: Tensor, norm_weight: Tensor, eps: float, gate_up_weight: LinearWeight, activation: Activation
) -> Tensor:
    """act(gate) * up of linear(rms_norm(x)); see `reference.projections.dense`."""
    y: Tensor = _products(x, gate_up_weight).norm_gated_linear(x, norm_weight, eps, gate_up_weight, activation)
    return y


def has_fp8_products(device: torch.device) -> bool:
    """Whether a GPU multiplies 8-bit floats; if not, `Fp8Weight`s are widened on their way to the product."""
    has: bool = triton_area("projections.fp8_widen").has_products(device)
    return has


def _products(x: Tensor, weight: LinearWeight) -> ModuleType:
    if isinstance(weight, Tensor):
        return dense if x.is_cpu else triton_area("projections.dense")
    return quantized if x.is_cpu else triton_area("projections.quantized")

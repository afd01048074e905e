"""Products with weights that are stored in fewer bits, in torch: those of the numbers that the weights stand for.

For weights of 8-bit floats the kernels may round activations to 8 bits (`Fp8Weight` says by which scales); the reference does
not.
"""

from __future__ import annotations

from typing import TypeAlias

from torch import Tensor

from streamserve_kernels.reference.activations import Activation
from streamserve_kernels.reference.projections import dense, fp8, grouped
from streamserve_kernels.reference.projections.fp8 import Fp8Weight
from streamserve_kernels.reference.projections.grouped import GroupedWeight

QuantizedWeight: TypeAlias = Fp8Weight | GroupedWeight


def dequantize(weight: QuantizedWeight) -> Tensor:
    """What a weight stands for, [out, in] fp32."""
    return fp8.dequantize(weight) if isinstance(weight, Fp8Weight) else grouped.dequantize(weight)


def linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """`dense.linear` with a quantized weight."""
    return dense.linear(x, _like(x, weight), bias)


def linear_residual(x: Tensor, weight: QuantizedWeight, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """`dense.linear_residual` with a quantized weight."""
    return dense.linear_residual(x, _like(x, weight), residual, bias)


def norm_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """`dense.norm_linear` with a quantized weight."""
    return dense.norm_linear(x, norm_weight, eps, _like(x, weight), bias)


def norm_gated_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: QuantizedWeight, activation: Activation) -> Tensor:
    """`dense.norm_gated_linear` with a quantized weight."""
    return dense.norm_gated_linear(x, norm_weight, eps, _like(x, weight), activation)


def _like(x: Tensor, weight: QuantizedWeight) -> Tensor:
    return dequantize(weight).to(x.dtype)

"""Linear layers with weights of fewer bits; see `reference/projections/quantized.py`; each kind of weight has a file."""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.projections import fp8, grouped
from streamserve_kernels.projections.epilogue import Epilogue
from streamserve_kernels.reference.projections.fp8 import Fp8Weight
from streamserve_kernels.reference.projections.quantized import QuantizedWeight


def linear(x: Tensor, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """`reference.projections.quantized.linear`."""
    return _multiply(x, weight, Epilogue(bias))


def linear_residual(x: Tensor, weight: QuantizedWeight, residual: Tensor, bias: Tensor | None = None) -> Tensor:
    """`reference.projections.quantized.linear_residual`."""
    return _multiply(x, weight, Epilogue(bias, residual.contiguous()))


def norm_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: QuantizedWeight, bias: Tensor | None = None) -> Tensor:
    """`reference.projections.quantized.norm_linear`."""
    return _multiply(x, weight, Epilogue(bias), norm_weight, eps)


def norm_gated_linear(x: Tensor, norm_weight: Tensor, eps: float, weight: QuantizedWeight, activation: str) -> Tensor:
    """`reference.projections.quantized.norm_gated_linear`."""
    return _multiply(x, weight, Epilogue(activation=activation), norm_weight, eps)


def _multiply(
    x: Tensor, weight: QuantizedWeight, after: Epilogue, norm_weight: Tensor | None = None, eps: float = 0.0
) -> Tensor:
    if isinstance(weight, Fp8Weight):
        return fp8.multiply(x, weight, after, norm_weight, eps)
    return grouped.multiply(x, weight, after, norm_weight, eps)

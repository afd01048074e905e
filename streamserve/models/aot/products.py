"""Products with the weights of a layer, as operations that TorchInductor can compile with any layer's weights.

Inductor itself compiles oneDNN's products with weights that are constants of what it compiles, one layer's. These take the
weight as an argument (`lowerings`), so that all layers share their code.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, library

from streamserve.models.aot.shape import LinearShape
from streamserve_kernels import INT4_GROUP


@library.custom_op("streamserve::blocked_linear", mutates_args=())
def blocked_linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [rows, in] @ weight.T (+ bias) -> [rows, out]; the weight in oneDNN's layout. All bf16."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return product


@library.custom_op("streamserve::blocked_linear_add", mutates_args=())
def blocked_linear_add(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """residual [rows, out] + blocked_linear(x, weight, bias), rounded once."""
    # A copy: oneDNN sums into the residual itself.
    product: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x, residual.clone(), weight, bias, "add")
    return product


@blocked_linear.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty(x.shape[0], weight.shape[0])


@blocked_linear_add.register_fake
def _(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.empty_like(residual)


class Product:
    """One linear's product in a piece."""

    def __init__(self, linear: LinearShape, *, few: bool) -> None:
        """few  up to `INT4_FEW_ROWS` rows come, which packed weights multiply"""
        self._linear = linear
        self._packed = few and linear.digits > 0

    def __call__(self, x: Tensor, tensors: Iterator[Tensor]) -> Tensor:
        """x [rows, in] -> [rows, out]; takes what belongs to it off `tensors`, as `linear_tensors` has it."""
        weight = next(tensors)
        if self._packed:
            return self._multiply_packed(x, weight, tensors)
        bias = self._bias(tensors)
        return F.linear(x, weight, bias) if self._linear.form == "plain" else blocked_linear(x, weight, bias)

    def add(self, x: Tensor, residual: Tensor, tensors: Iterator[Tensor]) -> Tensor:
        """residual [rows, out] + the product."""
        if self._packed or self._linear.form == "plain":
            return residual + self(x, tensors)
        total: Tensor = blocked_linear_add(x, residual, next(tensors), self._bias(tensors))
        return total

    def _bias(self, tensors: Iterator[Tensor]) -> Tensor | None:
        return next(tensors) if self._linear.bias else None

    def _multiply_packed(self, x: Tensor, weight: Tensor, tensors: Iterator[Tensor]) -> Tensor:
        scale_zero, bias = next(tensors), self._bias(tensors)
        # The digits of a weight lie side by side in one longer row, so that their products are summed in fp32.
        repeated = x if self._linear.digits == 1 else x.repeat(1, self._linear.digits)
        product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(repeated, weight, INT4_GROUP, scale_zero)
        return product if bias is None else product + bias

"""A weight of 8-bit floats, with a scale for each row or for each block of 128 × 128."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from streamserve.models.weights.destination import Destination
from streamserve.models.weights.forms.expanded import QuantizedForm
from streamserve.models.weights.forms.form import WeightPart, WeightSpec
from streamserve.models.weights.noise import STD, tile
from streamserve.models.weights.placement import Placement
from streamserve_kernels import (
    FP8_BLOCK,
    Activation,
    Fp8Weight,
    dequantize_fp8,
    fp8_scale_columns,
    linear,
    linear_residual,
    norm_gated_linear,
    norm_linear,
)

SPREAD = 64.0
"""Standard deviation of random weights, before their scales."""


class Fp8Form(QuantizedForm):
    """Multiplied by kernels that fuse norms, gates and residuals; more than a row of activations may be rounded to 8 bits.

    values       [out, in] float8_e4m3fn
    scale        fp32, as `Fp8Weight` has it
    input_scale  [1] fp32, zero until filled; None for activations that are scaled by what they are
    """

    values: nn.Parameter
    scale: nn.Parameter
    input_scale: nn.Parameter | None

    def __init__(
        self,
        spec: WeightSpec,
        place: Placement,
        fill: Callable[[Fp8Form], Iterator[Destination]],
        *,
        has_blocks: bool = False,
        has_input_scale: bool = False,
    ) -> None:
        """fill  names what fills the parameters"""
        super().__init__(spec, place)
        self.spec, self._fill = spec, fill
        self.values = place.empty(self.out_features, self.in_features, dtype=torch.float8_e4m3fn)
        rows = -(-self.out_features // FP8_BLOCK) if has_blocks else self.out_features
        self.scale = place.empty(rows, fp8_scale_columns(self.in_features) if has_blocks else 1, dtype=torch.float32)
        self.input_scale = place.empty(1, dtype=torch.float32) if has_input_scale else None
        if self.input_scale is not None:
            self.input_scale.zero_()
        self._weight = Fp8Weight(self.values, self.scale, self.input_scale)

    def destinations(self) -> Iterator[Destination]:
        return self._fill(self)

    def parts(self) -> Iterator[tuple[WeightPart, Tensor, Tensor]]:
        """Each part, its rows of the values, and its rows of the scale."""
        begin, step = 0, FP8_BLOCK if self._weight.has_blocks else 1
        for part, values in self.spec.split(self.values):
            end = begin + part.num_rows
            yield part, values, self.scale[begin // step : -(-end // step)]
            begin = end

    def randomize(self, noise: Tensor) -> None:
        tile(self.values, (noise.float() * (SPREAD / STD)).to(self.values.dtype))
        self.scale.fill_(STD / SPREAD)
        if self.input_scale is not None:
            self.input_scale.fill_(1 / SPREAD)

    def write_numbers(self, target: Tensor) -> None:
        target.copy_(dequantize_fp8(self._weight))

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self._weight, bias)

    def after_norm(self, x: Tensor, norm_weight: Tensor, eps: float, bias: Tensor | None) -> Tensor:
        return norm_linear(x, norm_weight, eps, self._weight, bias)

    def gated_after_norm(
        self, x: Tensor, norm_weight: Tensor, eps: float, activation: Activation, bias: Tensor | None
    ) -> Tensor:
        if bias is not None:
            return super().gated_after_norm(x, norm_weight, eps, activation, bias)
        return norm_gated_linear(x, norm_weight, eps, self._weight, activation)

    def onto(self, residual: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear_residual(x, self._weight, residual, bias)

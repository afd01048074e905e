"""A weight of 4-bit integers with a scale for each group of columns, as a GPU's kernels unpack it in registers."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from streamserve.errors import ModelNotSupported
from streamserve.models.weights.destination import Destination
from streamserve.models.weights.forms.expanded import QuantizedForm
from streamserve.models.weights.forms.form import WeightSpec
from streamserve.models.weights.grouped import FourBits
from streamserve.models.weights.noise import STD, random_words
from streamserve.models.weights.placement import Placement
from streamserve_kernels import (
    GROUPED_COLUMNS,
    GROUPED_ROWS,
    Activation,
    GroupedWeight,
    can_keep_grouped,
    dequantize_grouped,
    linear,
    linear_residual,
    norm_gated_linear,
    norm_linear,
    pack_grouped,
)

RANDOM_SCALE = STD / 4.6
"""Random integers' own standard deviation is 4.6."""


class FourBitForm(QuantizedForm):
    """Activations keep their precision.

    words  int32, as `GroupedWeight` has them
    scale  [in / group, out]
    zero   [in / group, out] uint8; None where all are 8
    order  [in] int64, which column of the model each one is; None where that is its own
    """

    words: nn.Parameter
    scale: nn.Parameter
    zero: nn.Parameter | None
    order: nn.Parameter | None

    def __init__(
        self,
        spec: WeightSpec,
        place: Placement,
        fill: Callable[[FourBitForm], Iterator[Destination]],
        *,
        group: int,
        has_zero: bool,
        has_order: bool,
    ) -> None:
        """fill  names what calls `receive`"""
        super().__init__(spec, place)
        self.spec, self._fill = spec, fill
        tiles = self.out_features // GROUPED_ROWS, self.in_features // GROUPED_COLUMNS
        groups = self.in_features // group
        self.words = place.empty(*tiles, 32, 4, dtype=torch.int32)
        self.scale = place.empty(groups, self.out_features)
        self.zero = place.empty(groups, self.out_features, dtype=torch.uint8) if has_zero else None
        self.order = place.empty(self.in_features, dtype=torch.int64) if has_order else None
        self._num_filled = 0
        self._weight = GroupedWeight(self.words, self.scale, self.zero, self.order)

    @classmethod
    def can_have(cls, spec: WeightSpec, place: Placement) -> bool:
        """Whether the kernels take a weight of this shape, where it will live."""
        in_tiles = all(part.num_rows % GROUPED_ROWS == 0 for part in spec.parts) and spec.in_features % GROUPED_COLUMNS == 0
        return in_tiles and can_keep_grouped(place.dtype, place.device)

    def destinations(self) -> Iterator[Destination]:
        return self._fill(self)

    def receive(self, index: int, part: FourBits) -> None:
        """Fill the part of this index."""
        begin = sum(each.num_rows for each in self.spec.parts[:index])
        rows = slice(begin, begin + self.spec.parts[index].num_rows)
        self.words[rows.start // GROUPED_ROWS : rows.stop // GROUPED_ROWS] = pack_grouped(part.quants)
        self.scale[:, rows] = part.scale.t().to(self.scale.dtype)
        if self.zero is not None and part.zero is not None:
            self.zero[:, rows] = part.zero.t()
        if self.order is not None and part.order is not None:
            if self._num_filled and not torch.equal(self.order, part.order):
                names = ", ".join(each.name for each in self.spec.parts)
                raise ModelNotSupported(f"{names} are multiplied together and order their inputs differently (act-order)")
            self.order.copy_(part.order)
        self._num_filled += 1

    def randomize(self, noise: Tensor) -> None:
        self.words.copy_(random_words(self.words))
        self.scale.fill_(RANDOM_SCALE)
        if self.zero is not None:
            self.zero.fill_(8)
        if self.order is not None:
            self.order.copy_(torch.arange(self.in_features))

    def write_numbers(self, target: Tensor) -> None:
        target.copy_(dequantize_grouped(self._weight))

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

"""A weight of 4-bit digits on a CPU, which stays packed for few rows and is expanded beside that for more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from streamserve.models.weights.destination import Destination
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.forms.plain import plain_form
from streamserve.models.weights.grouped import GroupedIntegers, join_rows
from streamserve.models.weights.noise import STD, tile
from streamserve.models.weights.placement import Placement
from streamserve_kernels import INT4_FEW_ROWS, INT4_GROUP, INT4_ROW_MULTIPLE, Int4Weight, can_pack, int4_linear


class Int4Form(Form):
    """Up to `INT4_FEW_ROWS` rows are multiplied with the packed weight, more with its expanded form.

    packed      there once every part has been filled
    num_digits  per number
    expanded    the same numbers in bf16
    """

    packed: Int4Weight
    num_digits: int
    expanded: Form

    def __init__(
        self, spec: WeightSpec, place: Placement, fill: Callable[[Int4Form], Iterator[Destination]], *, num_digits: int
    ) -> None:
        """fill  names what calls `receive`"""
        super().__init__(spec, place)
        self.spec, self.num_digits, self._fill = spec, num_digits, fill
        self._arrived: dict[int, GroupedIntegers] = {}
        self._dense = place.empty(self.out_features, self.in_features) if spec.table is None else spec.table
        self.expanded = plain_form(replace(spec, table=self._dense), place)

    @classmethod
    def can_have(cls, spec: WeightSpec, place: Placement) -> bool:
        """Whether the kernel takes a weight of this shape, where it will live."""
        columns = spec.parts[0].region.ranges[1]
        in_groups = columns.start % INT4_GROUP == 0 and columns.stop % INT4_GROUP == 0
        return spec.out_features % INT4_ROW_MULTIPLE == 0 and in_groups and can_pack(place.dtype, place.device)

    def destinations(self) -> Iterator[Destination]:
        return self._fill(self)

    def receive(self, index: int, integers: GroupedIntegers) -> None:
        """Fill the part of this index."""
        self._arrived[index] = integers
        if len(self._arrived) == len(self.spec.parts):
            # At once, since the kernel's order of rows depends on how many there are.
            parts = [self._arrived.pop(index) for index in range(len(self.spec.parts))]
            self.packed = join_rows(parts).pack(self._dense)

    def randomize(self, noise: Tensor) -> None:
        tile(self._dense, noise)
        for index, (_, rows) in enumerate(self.spec.split(self._dense)):
            scale = torch.full((len(rows), self.in_features // INT4_GROUP), STD / 4)
            quants = (rows.float() / (STD / 4)).round_().clamp_(-8, 7).add_(8).to(torch.uint8)
            self.receive(index, GroupedIntegers(quants, scale, torch.zeros_like(scale)))

    def finish(self) -> Form:
        del self._dense
        self.expanded = self.expanded.finish()
        return self

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[0] > INT4_FEW_ROWS:
            return self.expanded.multiply(x, bias)
        return int4_linear(x, self.packed, bias)

    def onto(self, residual: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[0] > INT4_FEW_ROWS:
            return self.expanded.onto(residual, x, bias)
        return int4_linear(x, self.packed, bias).add_(residual)


def is_few(rows: int) -> bool:
    """Whether so many rows are multiplied with packed weights, where there are some."""
    return rows <= INT4_FEW_ROWS

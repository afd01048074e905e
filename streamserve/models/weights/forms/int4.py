"""A weight of 4-bit digits on a CPU, which stays packed for few rows and is expanded beside that for more."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from streamserve.models.weights.destination import Destination
from streamserve.models.weights.forms.blocked import BlockedForm
from streamserve.models.weights.forms.dense import DenseForm
from streamserve.models.weights.forms.form import Form, WeightPart, WeightSpec
from streamserve.models.weights.grouped import GroupedIntegers, join_rows
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.source import StoredTensor
from streamserve_kernels import INT4_FEW_ROWS, INT4_GROUP, INT4_ROW_MULTIPLE, Int4Weight, can_block, can_pack, int4_linear


class Int4Form(Form):
    """Up to `INT4_FEW_ROWS` rows are multiplied with the packed weight, more with its expanded form.

    packed      there once every part has been filled
    num_digits  per number
    expanded    the same numbers in bf16
    """

    packed: Int4Weight
    num_digits: int
    expanded: Form

    def __init__(self, spec: WeightSpec, place: Placement) -> None:
        super().__init__(spec, place)
        self._parts = spec.parts
        self._arrived: dict[int, GroupedIntegers] = {}
        self.num_digits = place.storage.num_digits[f"{spec.parts[0].name}.weight"]
        self._dense = place.empty(self.out_features, self.in_features) if spec.table is None else spec.table
        wide = BlockedForm if can_block(place.dtype, place.device) else DenseForm
        self.expanded = wide(replace(spec, table=self._dense), place)

    @classmethod
    def takes(cls, spec: WeightSpec, place: Placement) -> bool:
        digits = {place.storage.num_digits.get(f"{part.name}.weight") for part in spec.parts}
        columns = spec.parts[0].region.ranges[1]
        in_groups = columns.start % INT4_GROUP == 0 and columns.stop % INT4_GROUP == 0
        fits = spec.out_features % INT4_ROW_MULTIPLE == 0 and in_groups
        return len(digits) == 1 and None not in digits and fits and can_pack(place.dtype, place.device)

    def destinations(self) -> Iterator[Destination]:
        for index, part in enumerate(self._parts):
            yield Destination(f"{part.name}.weight", part.region, self._receiver(index, part))

    def finish(self) -> None:
        del self._dense
        self.expanded.finish()

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[0] > INT4_FEW_ROWS:
            return self.expanded.multiply(x, bias)
        return int4_linear(x, self.packed, bias)

    def onto(self, residual: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        if x.shape[0] > INT4_FEW_ROWS:
            return self.expanded.onto(residual, x, bias)
        return int4_linear(x, self.packed, bias).add_(residual)

    def _receiver(self, index: int, part: WeightPart) -> Callable[[StoredTensor], None]:
        def receive(stored: StoredTensor) -> None:
            self._arrived[index] = stored.integers.part(*part.region.slices)
            if len(self._arrived) == len(self._parts):
                self._pack()

        return receive

    def _pack(self) -> None:
        # At once, since the kernel's order of rows depends on how many there are.
        parts = [self._arrived.pop(index) for index in range(len(self._parts))]
        self.packed = join_rows(parts).pack(self._dense)


def is_few(rows: int) -> bool:
    """Whether so many rows are multiplied with packed weights, where there are some."""
    return rows <= INT4_FEW_ROWS

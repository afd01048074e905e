"""Quantized weights where nothing multiplies them as they are: their numbers, in the model's dtype."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from streamserve.models.weights.destination import Destination
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.forms.plain import plain_form
from streamserve.models.weights.grouped import FourBits
from streamserve.models.weights.placement import Placement


class QuantizedForm(Form):
    """A form whose parameters stand for other numbers."""

    @abstractmethod
    def write_numbers(self, target: Tensor) -> None:
        """Fill a tensor [out_features, in_features] of any float dtype with what they stand for."""


class ExpandedForm(Form):
    """Filled as a quantized weight, and finished as a plain one of the same numbers."""

    def __init__(self, spec: WeightSpec, place: Placement) -> None:
        super().__init__(spec, place)
        self.numbers = place.empty(self.out_features, self.in_features)
        self.plain = plain_form(replace(spec, table=self.numbers), place)

    def finish(self) -> Form:
        return self.plain.finish()

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.plain.multiply(x, bias)


class ExpandedAtLast(ExpandedForm):
    """Expanded when all of it is there."""

    def __init__(self, stored: QuantizedForm, spec: WeightSpec, place: Placement) -> None:
        super().__init__(spec, place)
        self.stored = stored

    def destinations(self) -> Iterator[Destination]:
        return self.stored.destinations()

    def randomize(self, noise: Tensor) -> None:
        self.stored.randomize(noise)

    def finish(self) -> Form:
        self.stored.write_numbers(self.numbers)
        return super().finish()


class ExpandedFourBits(ExpandedForm):
    """Expanded part by part, as they are read."""

    def __init__(self, spec: WeightSpec, place: Placement, fill: Callable[[ExpandedFourBits], Iterator[Destination]]) -> None:
        """fill  names what calls `receive`"""
        super().__init__(spec, place)
        self.spec, self._fill = spec, fill

    def destinations(self) -> Iterator[Destination]:
        return self._fill(self)

    def receive(self, index: int, part: FourBits) -> None:
        """Fill the part of this index."""
        rows = list(self.spec.split(self.numbers))[index][1]
        rows.copy_(part.numbers())

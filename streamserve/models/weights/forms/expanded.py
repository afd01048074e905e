"""A quantized weight where nothing multiplies it as it is: its numbers, in the model's dtype."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from streamserve.models.weights.destination import Destination
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.forms.plain import plain_form
from streamserve.models.weights.placement import Placement


class QuantizedForm(Form):
    """A form whose parameters stand for other numbers."""

    @abstractmethod
    def write_numbers(self, target: Tensor) -> None:
        """Fill a tensor [out_features, in_features] of any float dtype with what they stand for."""


class ExpandedForm(Form):
    """Filled as a quantized weight, which `finish` replaces by a plain one of the same numbers."""

    def __init__(self, stored: QuantizedForm, spec: WeightSpec, place: Placement) -> None:
        super().__init__(spec, place)
        self.stored = stored
        self._numbers = place.empty(self.out_features, self.in_features)
        self.plain = plain_form(replace(spec, table=self._numbers), place)

    def destinations(self) -> Iterator[Destination]:
        return self.stored.destinations()

    def randomize(self, noise: Tensor) -> None:
        self.stored.randomize(noise)

    def finish(self) -> Form:
        self.stored.write_numbers(self._numbers)
        return self.plain.finish()

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self.plain.multiply(x, bias)

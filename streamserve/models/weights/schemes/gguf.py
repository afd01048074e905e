"""Weights of .gguf files that are stored as groups of small integers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from streamserve.models.weights.destination import Destination
from streamserve.models.weights.forms.form import Form, WeightPart, WeightSpec
from streamserve.models.weights.forms.int4 import Int4Form
from streamserve.models.weights.forms.plain import plain_form
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.scheme import Scheme
from streamserve.models.weights.source import StoredTensor


@dataclass(frozen=True)
class GgufIntegers(Scheme):
    """num_digits  of 4 bits that a number has"""

    has_numbers = True
    num_digits: int

    def form(self, spec: WeightSpec, place: Placement) -> Form:
        if Int4Form.can_have(spec, place):
            return Int4Form(spec, place, _fill, num_digits=self.num_digits)
        return plain_form(spec, place)


def _fill(form: Int4Form) -> Iterator[Destination]:
    for index, part in enumerate(form.spec.parts):
        yield Destination(f"{part.name}.weight", part.region, _receives(form, index, part))


def _receives(form: Int4Form, index: int, part: WeightPart) -> Callable[[StoredTensor], None]:
    def fill(stored: StoredTensor) -> None:
        form.receive(index, stored.integers.part(*part.region.slices))

    return fill

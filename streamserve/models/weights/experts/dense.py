"""Experts as tensors of the model's dtype, stacked."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from streamserve.models.weights.destination import Destination, copied, left_out
from streamserve.models.weights.experts.expansion import expanded, is_stored_wide
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.mxfp4 import dequantized
from streamserve.models.weights.experts.spec import ExpertPart, ExpertsSpec
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.table import schemes_of
from streamserve_kernels import Activation, Routes, experts_residual


class DenseExperts(ExpertsForm):
    """Multiplied by the grouped products of the kernels. What is stored quantized is expanded while it is loaded.

    gate_up  [experts, 2 * inner, hidden], where rows of gate and up take turns
    down     [experts, hidden, inner]
    gate_up_bias, down_bias  [experts, 2 * inner], [experts, hidden], or None
    """

    gate_up: nn.Parameter
    down: nn.Parameter

    def __init__(self, spec: ExpertsSpec, place: Placement) -> None:
        super().__init__(spec, place)
        self._place, self._scheme_of = place, schemes_of(place.storage)
        count, hidden, inner = len(spec.experts), spec.hidden_size, len(spec.inner)
        self.gate_up = place.empty(count, 2 * inner, hidden)
        self.down = place.empty(count, hidden, inner)
        self.gate_up_bias = place.empty(count, 2 * inner) if spec.biased else None
        self.down_bias = place.empty(count, hidden) if spec.adds_down_bias else None

    @classmethod
    def takes(cls, spec: ExpertsSpec, place: Placement) -> bool:
        return True

    def destinations(self) -> Iterator[Destination]:
        for part in self.spec.weights(self.gate_up, self.down):
            scheme = self._scheme_of(part.name.removesuffix(".weight"))
            if self.spec.stored.mxfp4:
                yield from dequantized(part)
            elif is_stored_wide(scheme):
                yield as_stored(part)
            else:
                yield from expanded(part, scheme, self._place)
        if self.gate_up_bias is not None:
            for part in self.spec.biases(self.gate_up_bias, self.down_bias):
                yield as_stored(part)

    @property
    def is_expanded(self) -> bool:
        name = self.spec.prefix + self.spec.stored.gate.format(self.spec.experts.start)
        return self.spec.stored.mxfp4 or not is_stored_wide(self._scheme_of(name.removesuffix(".weight")))

    def onto(self, residual: Tensor, routes: Routes, activation: Activation) -> Tensor:
        return experts_residual(
            residual,
            routes,
            self.gate_up,
            self.down,
            activation,
            gate_up_bias=self.gate_up_bias,
            down_bias=self.down_bias,
            first_expert=self.spec.experts.start,
        )


def as_stored(part: ExpertPart) -> Destination:
    """The destination of numbers that are copied as they are."""
    return left_out(part.name, part.region) if part.target is None else copied(part.name, part.target, part.region)

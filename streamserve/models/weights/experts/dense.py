"""Experts as tensors of the model's dtype, stacked."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from streamserve.models.weights.destination import Destination
from streamserve.models.weights.experts.biases import as_stored
from streamserve.models.weights.experts.expansion import expanded, is_stored_wide, rounded
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.mxfp4_blocks import dequantized
from streamserve.models.weights.experts.spec import ExpertsSpec
from streamserve.models.weights.noise import tile
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.scheme import Scheme
from streamserve.models.weights.schemes.table import schemes_of


class DenseExperts(ExpertsForm):
    """Multiplied by the grouped products of the kernels. What is stored quantized is expanded while it is loaded.

    gate_up  [experts, 2 * inner, hidden], where rows of gate and up take turns
    down     [experts, hidden, inner]
    """

    gate_up: nn.Parameter
    down: nn.Parameter

    def __init__(self, spec: ExpertsSpec, place: Placement, scheme: Scheme | None) -> None:
        super().__init__(spec, place, scheme)
        self._place, self._scheme_of = place, schemes_of(place.storage)
        count, hidden, inner = len(spec.experts), spec.hidden_size, len(spec.inner)
        self.gate_up = place.empty(count, 2 * inner, hidden)
        self.down = place.empty(count, hidden, inner)
        schemes = map(self._scheme_of, spec.names()) if scheme is None else (scheme,)
        self.is_expanded = spec.is_mxfp4(place.storage) or not all(map(is_stored_wide, schemes))

    @classmethod
    def takes(cls, spec: ExpertsSpec, place: Placement, scheme: Scheme | None) -> bool:
        return True

    @property
    def weights(self) -> tuple[Tensor, Tensor]:
        return self.gate_up, self.down

    def weight_destinations(self) -> Iterator[Destination]:
        for part in self.spec.weights(self.gate_up, self.down):
            scheme = self._scheme_of(part.name.removesuffix(".weight"))
            if self.spec.stored.mxfp4:
                yield from dequantized(part)
            elif is_stored_wide(scheme):
                yield as_stored(part)
            elif scheme.has_numbers:
                yield rounded(part, transposed=self.spec.stored.transposed)
            else:
                yield from expanded(part, scheme, self._place)

    def randomize_weights(self, noise: Tensor) -> None:
        for weight in self.weights:
            tile(weight, noise)

"""The biases of a layer's experts, which are of the model's dtype whatever weights are."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from streamserve.models.weights.destination import Destination, copied, left_out
from streamserve.models.weights.experts.spec import ExpertPart, ExpertsSpec
from streamserve.models.weights.noise import tile
from streamserve.models.weights.placement import Placement


class ExpertBiases(nn.Module):
    """gate_up [experts, 2 * inner] and down [experts, hidden], or None.

    Rows of gate and up take turns. `inner` may be more than the experts have: zeros, for kernels that want them.
    """

    def __init__(self, spec: ExpertsSpec, place: Placement, *, inner: int | None = None) -> None:
        super().__init__()
        self._spec, count = spec, len(spec.experts)
        self.gate_up = place.empty(count, 2 * (inner or len(spec.inner))) if spec.biased else None
        self.down = place.empty(count, spec.hidden_size) if spec.adds_down_bias else None
        if self.gate_up is not None:
            self.gate_up.zero_()

    @property
    def by_name(self) -> dict[str, Tensor | None]:
        """As `experts_residual` calls them."""
        return {"gate_up_bias": self.gate_up, "down_bias": self.down}

    def destinations(self) -> Iterator[Destination]:
        if self.gate_up is not None:
            filled = self.gate_up[:, : 2 * len(self._spec.inner)]
            for part in self._spec.biases(filled, self.down):
                yield as_stored(part)

    def randomize(self, noise: Tensor) -> None:
        for bias in self.parameters():
            tile(bias, noise)


def as_stored(part: ExpertPart) -> Destination:
    """The destination of numbers that are copied as they are."""
    return left_out(part.name, part.region) if part.target is None else copied(part.name, part.target, part.region)

"""A bf16 weight on a CPU, in the layout that oneDNN multiplies fastest."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from streamserve.models.weights.destination import Destination
from streamserve.models.weights.forms.dense import DenseForm
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.placement import Placement
from streamserve_kernels import block_weight, blocked_linear, blocked_linear_residual


class BlockedForm(Form):
    """Filled as a dense weight, which `finish` replaces by its reordered copy.

    blocked  [out, in], opaque; there once finished
    """

    blocked: Tensor

    def __init__(self, spec: WeightSpec, place: Placement) -> None:
        super().__init__(spec, place)
        self.dense = DenseForm(spec, place)

    def destinations(self) -> Iterator[Destination]:
        return self.dense.destinations()

    def finish(self) -> Form:
        self.blocked = block_weight(self.dense.weight)
        del self.dense
        return self

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return blocked_linear(x, self.blocked, bias)

    def onto(self, residual: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        return blocked_linear_residual(x, self.blocked, residual, bias)

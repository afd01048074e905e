"""A weight as a tensor of the model's dtype."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from streamserve.models.weights.destination import Destination, copied
from streamserve.models.weights.forms.form import Form, WeightSpec
from streamserve.models.weights.placement import Placement
from streamserve_kernels import Activation, linear, linear_residual, norm_gated_linear, norm_linear


class DenseForm(Form):
    """weight [out, in], multiplied by the kernels that fuse norms, gates and residuals."""

    weight: nn.Parameter

    def __init__(self, spec: WeightSpec, place: Placement) -> None:
        super().__init__(spec, place)
        self._spec = spec
        self.weight = place.empty(self.out_features, self.in_features) if spec.table is None else spec.table

    def destinations(self) -> Iterator[Destination]:
        for part, rows in self._spec.split(self.weight):
            yield copied(f"{part.name}.weight", rows, part.region)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear(x, self.weight, bias)

    def after_norm(self, x: Tensor, norm_weight: Tensor, eps: float, bias: Tensor | None) -> Tensor:
        return norm_linear(x, norm_weight, eps, self.weight, bias)

    def gated_after_norm(
        self, x: Tensor, norm_weight: Tensor, eps: float, activation: Activation, bias: Tensor | None
    ) -> Tensor:
        if bias is not None:
            return super().gated_after_norm(x, norm_weight, eps, activation, bias)
        return norm_gated_linear(x, norm_weight, eps, self.weight, activation)

    def onto(self, residual: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        return linear_residual(x, self.weight, residual, bias)

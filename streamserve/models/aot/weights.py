"""The forms of weights that layers can be compiled with, and each as TorchInductor traces it."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamserve.models.aot.products import compiled_linear, compiled_linear_residual
from streamserve.models.layers.linear import Linear
from streamserve.models.weights.forms.blocked import BlockedForm
from streamserve.models.weights.forms.dense import DenseForm
from streamserve.models.weights.forms.form import Form, Weight
from streamserve.models.weights.forms.int4 import Int4Form
from streamserve_kernels import INT4_GROUP, Activation, Int4Weight, block_weight, int4_linear

_GATES: dict[Activation, Callable[[Tensor, Tensor], Tensor]] = {
    "silu": lambda gate, up: F.silu(gate) * up,
    "gelu_tanh": lambda gate, up: F.gelu(gate, approximate="tanh") * up,
    "clamped_silu": lambda gate, up: gate.clamp(max=7) * torch.sigmoid(1.702 * gate.clamp(max=7)) * (up.clamp(-7, 7) + 1),
}


@dataclass(frozen=True)
class LinearShape:
    """A linear of a layer, as far as machine code depends on it.

    form    of its weight, by name in `_TRACED`
    digits  how many of 4 bits its weights have where up to `INT4_FEW_ROWS` rows are multiplied with packed ones, else 0
    """

    in_features: int
    out_features: int
    bias: bool
    form: str
    digits: int


class Sample(NamedTuple):
    """A random tensor that a piece may be given, and a stand-in to trace it by: tracing can't look into oneDNN's."""

    real: Tensor
    stand_in: Tensor


class TracedWeight(Weight):
    """A weight whose parameters have no memory; fused operations are spelled out for Inductor, which fuses them itself."""

    def __init__(self, shape: LinearShape, dtype: torch.dtype) -> None:
        super().__init__()
        self.in_features, self.out_features = shape.in_features, shape.out_features
        self.dtype = dtype

    def after_norm(self, x: Tensor, norm_weight: Tensor, eps: float, bias: Tensor | None) -> Tensor:
        return self.multiply(rms_norm(x, norm_weight, eps), bias)

    def gated_after_norm(
        self, x: Tensor, norm_weight: Tensor, eps: float, activation: Activation, bias: Tensor | None
    ) -> Tensor:
        gate, up = self.after_norm(x, norm_weight, eps, bias).float().chunk(2, dim=-1)
        gated: Tensor = _GATES[activation](gate, up).to(x.dtype)
        return gated

    def onto(self, residual: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        return residual + self.multiply(x, bias)

    @abstractmethod
    def samples(self) -> list[Sample]:
        """One for each parameter, in their order."""


class TracedDense(TracedWeight):
    """A weight [out, in] as a tensor."""

    def __init__(self, shape: LinearShape, dtype: torch.dtype) -> None:
        super().__init__(shape, dtype)
        self.weight = no_memory(shape.out_features, shape.in_features, dtype=dtype)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, self.weight, bias)

    def samples(self) -> list[Sample]:
        weight = self._random()
        return [Sample(weight, weight)]

    def _random(self) -> Tensor:
        weight: Tensor = torch.randn(self.out_features, self.in_features).to(self.dtype) / self.in_features**0.5
        return weight


class TracedBlocked(TracedDense):
    """A weight [out, in] in oneDNN's layout."""

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        product: Tensor = compiled_linear(x, self.weight, bias)
        return product

    def onto(self, residual: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        total: Tensor = compiled_linear_residual(x, residual, self.weight, bias)
        return total

    def samples(self) -> list[Sample]:
        weight = self._random()
        return [Sample(block_weight(weight), weight)]


class TracedInt4(TracedWeight):
    """A weight as packed digits."""

    def __init__(self, shape: LinearShape, dtype: torch.dtype) -> None:
        super().__init__(shape, dtype)
        in_digits = shape.digits * shape.in_features
        self.packed = no_memory(shape.out_features, in_digits // 2, dtype=torch.uint8)
        self.scale_zero = no_memory(in_digits // INT4_GROUP, shape.out_features, 2, dtype=dtype)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return int4_linear(x, Int4Weight(self.packed, self.scale_zero), bias)

    def samples(self) -> list[Sample]:
        packed = torch.randint(0, 256, self.packed.shape, dtype=torch.uint8)
        scale_zero = torch.randn(self.scale_zero.shape).to(self.dtype) / 100
        return [Sample(packed, packed), Sample(scale_zero, scale_zero)]


_TRACED: dict[str, tuple[type[Form], type[TracedDense]]] = {
    "dense": (DenseForm, TracedDense),
    "blocked": (BlockedForm, TracedBlocked),
}


def linear_shape(linear: Linear) -> LinearShape | None:
    """Of a linear as the model has it; None when its weight has a form that can't be compiled, or ranks sum its outputs."""
    form, digits = linear.form, 0
    if linear.communicator is not None:
        return None
    if isinstance(form, Int4Form):
        digits = form.num_digits
        form = form.expanded
    name = next((name for name, (kind, _) in _TRACED.items() if type(form) is kind), None)
    if name is None:
        return None
    return LinearShape(form.in_features, form.out_features, linear.bias is not None, name, digits)


def traced_weight(shape: LinearShape, dtype: torch.dtype, *, few: bool) -> TracedWeight:
    """few  for pieces that multiply up to `INT4_FEW_ROWS` rows"""
    if few and shape.digits:
        return TracedInt4(shape, dtype)
    return _TRACED[shape.form][1](shape, dtype)


def weight_tensors(form: Form, *, few: bool) -> Sequence[Tensor]:
    """A weight's tensors in the order of the traced one's parameters."""
    if isinstance(form, Int4Form):
        return form.packed if few else weight_tensors(form.expanded, few=False)
    if isinstance(form, BlockedForm):
        return (form.blocked,)
    if isinstance(form, DenseForm):
        return (form.weight,)
    raise TypeError(f"layers with a {type(form).__name__} are not compiled")


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As the kernel of this name computes it."""
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def no_memory(*shape: int, dtype: torch.dtype) -> nn.Parameter:
    """A parameter that is exchanged for an argument."""
    return nn.Parameter(torch.empty(shape, dtype=dtype, device="meta"), requires_grad=False)

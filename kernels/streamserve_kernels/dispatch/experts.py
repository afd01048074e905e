"""Mixtures of experts, on the device of their input."""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.dispatch.areas import triton_area
from streamserve_kernels.reference import experts as reference
from streamserve_kernels.reference.activations import Activation
from streamserve_kernels.reference.experts import Routes, RoutingRule
from streamserve_kernels.reference.quantized_experts import ExpertsWeight


def norm_route(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    router_weight: Tensor,
    rule: RoutingRule,
    *,
    bias: Tensor | None = None,
    choice_bias: Tensor | None = None,
) -> Routes:
    """Norm tokens and choose the experts of each; see `reference.experts`."""
    area = reference if x.is_cpu else triton_area("experts")
    routes: Routes = area.norm_route(x, norm_weight, eps, router_weight, rule, bias=bias, choice_bias=choice_bias)
    return routes


def experts_residual(
    residual: Tensor,
    routes: Routes,
    gate_up: ExpertsWeight,
    down: ExpertsWeight,
    activation: Activation,
    *,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    first_expert: int = 0,
) -> Tensor:
    """residual + the weighted sum of what each token's experts make of it; see `reference.experts`."""
    area = reference if residual.is_cpu else triton_area("experts")
    out: Tensor = area.experts_residual(
        residual,
        routes,
        gate_up,
        down,
        activation,
        gate_up_bias=gate_up_bias,
        down_bias=down_bias,
        first_expert=first_expert,
    )
    return out

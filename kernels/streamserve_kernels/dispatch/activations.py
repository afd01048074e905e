"""Gated activations, on the device of their input."""

from __future__ import annotations

from torch import Tensor

from streamserve_kernels.dispatch.areas import triton_area
from streamserve_kernels.reference import activations as reference
from streamserve_kernels.reference.activations import Activation


def gated_activation(x: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up of the two halves of each row; see `reference.activations`."""
    area = reference if x.is_cpu else triton_area("activations")
    y: Tensor = area.gated_activation(x, activation)
    return y

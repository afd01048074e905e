"""Gated activations, in torch. Arithmetic is fp32; a result may be rounded between activation and product."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Activation: TypeAlias = Literal["silu", "gelu_tanh", "clamped_silu"]

CLAMPED_SILU_LIMIT = 7.0
CLAMPED_SILU_ALPHA = 1.702

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


def gated_activation(x: Tensor, activation: Activation) -> Tensor:
    """The gate of SwiGLU ("silu") or GeGLU ("gelu_tanh", the tanh approximation; Shazeer, 2020): act(gate) * up.

    x        [tokens, 2 * n]  the gate in the first half, up in the second
    returns  [tokens, n]      dtype of x
    """
    gate, up = x.chunk(2, dim=-1)
    return gate_up_activation(gate, up, activation)


def gate_up_activation(gate: Tensor, up: Tensor, activation: Activation) -> Tensor:
    """act(gate) * up, for gates and ups of one shape; "clamped_silu" is g * sigmoid(1.702 g) * (u + 1) of both, cut off at 7.

    Of the gate only what is above 7 is cut off (gpt-oss, OpenAI, 2025, https://arxiv.org/abs/2508.10925).
    """
    if activation == "clamped_silu":
        gate = gate.clamp(max=CLAMPED_SILU_LIMIT)
        up = up.clamp(-CLAMPED_SILU_LIMIT, CLAMPED_SILU_LIMIT) + 1
        return torch.sigmoid(gate * CLAMPED_SILU_ALPHA).mul_(gate).mul_(up)
    return _ACTIVATIONS[activation](gate).mul_(up)

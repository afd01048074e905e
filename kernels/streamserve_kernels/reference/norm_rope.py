"""Norms, gated activations and the rotation of rotary embeddings, in torch.

Arithmetic is fp32. A norm and a rotation are rounded to the input's dtype once, at the end; a gated activation may be rounded
between activation and product.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

Activation: TypeAlias = Literal["silu", "gelu_tanh", "clamped_silu"]

CLAMPED_SILU_LIMIT = 7.0
CLAMPED_SILU_ALPHA = 1.702

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"silu": F.silu, "gelu_tanh": partial(F.gelu, approximate="tanh")}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Root-mean-square norm over the last dimension (Zhang & Sennrich, 2019): x / sqrt(mean(x²) + eps) * weight.

    x       [..., n]  bf16|fp16|fp32
    weight  [n]       any float dtype, not necessarily that of x
    returns [..., n]  dtype of x
    """
    # Few calls: on a few rows each costs more than its arithmetic.
    if x.numel() == weight.shape[0]:
        row = x.to(torch.float32, copy=True)
        square = torch.dot(row.view(-1), row.view(-1)).item()
        return row.mul_(weight).mul_((square / weight.shape[0] + eps) ** -0.5).to(x.dtype)
    wide = x.float()
    length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = torch.addcmul(_scalar(eps, x.device), length, length, value=1 / weight.shape[0]).rsqrt_()
    return (wide * scale).mul_(weight).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm over the last dimension (Ba et al., 2016).

    x             [..., n]  bf16|fp16|fp32
    weight, bias  [n]       dtype of x
    returns       [..., n]  dtype of x
    """
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


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


def rotate_(x: Tensor, cos_sin: Tensor) -> None:
    """Rotary embedding of the first dimensions of every head, in place (Su et al., 2021; halves paired as in GPT-NeoX).

    x        [tokens, heads, head_dim]  bf16|fp16|fp32; dimensions from rot_dim on stay as they are
    cos_sin  [tokens, rot_dim]          fp32: rot_dim / 2 cosines, then as many sines; rot_dim <= head_dim
    """
    half = cos_sin.shape[-1] // 2
    cos, sin = cos_sin[:, None, :half], cos_sin[:, None, half:]
    first, second = x[..., :half], x[..., half : 2 * half]
    left, right = first.float(), second.float()
    rotated_first = torch.addcmul(left * cos, right, sin, value=-1)
    second.copy_(torch.addcmul(right * cos, left, sin))
    first.copy_(rotated_first)


@cache
def _scalar(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device)

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


def rms_norm_residual(x: Tensor, weight: Tensor, eps: float, residual: Tensor) -> Tensor:
    """residual + rms_norm(x): the end of a block that is normed after its last product.

    residual  [..., n]  shape and dtype of x; not to be used afterwards, since the result may take its place
    returns   [..., n]  dtype of x; the norm may be rounded before the sum
    """
    return rms_norm(x, weight, eps).add_(residual)


def head_squares(qkv: Tensor, q_width: int, k_width: int) -> Tensor:
    """Sums of squares of all queries of a token, and of all its keys: what `norm_all_heads_` divides by.

    qkv      [tokens, n]  bf16|fp16|fp32: q_width columns of queries, k_width columns of keys, and others
    returns  [tokens, 2]  fp32
    """
    queries, keys = qkv[:, :q_width].float(), qkv[:, q_width : q_width + k_width].float()
    return torch.stack([queries.square().sum(-1), keys.square().sum(-1)], dim=1)


def norm_all_heads_(
    qkv: Tensor, q_norm: Tensor, k_norm: Tensor, eps: float, *, squares: Tensor | None = None, shares: int = 1
) -> None:
    """RMS norm over all query heads of a token together, and over all its key heads (OLMo 2), in place.

    qkv      [tokens, n]  bf16|fp16|fp32: queries, keys, and what stays as it is
    q_norm   [columns of queries]  any float dtype; k_norm of keys
    squares  [tokens, 2]  fp32, `head_squares` of these heads and of those elsewhere, summed; None computes them
    shares   how many times as many columns they are of
    """
    first = 0
    for index, weight in enumerate((q_norm, k_norm)):
        width = weight.shape[0]
        heads = qkv[:, first : first + width]
        if squares is None:
            heads.copy_(rms_norm(heads, weight, eps))
        else:
            scale = (squares[:, index : index + 1] / (width * shares) + eps).rsqrt()
            heads.copy_(heads.float() * scale * weight)
        first += width


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


def rotate_(x: Tensor, cos_sin: Tensor, *, interleaved: bool = False) -> None:
    """Rotary embedding of the first dimensions of every head, in place (Su et al., 2021).

    x            [tokens, heads, head_dim]  bf16|fp16|fp32; dimensions from rot_dim on stay as they are
    cos_sin      [tokens, rot_dim]          fp32: rot_dim / 2 cosines, then as many sines; rot_dim <= head_dim
    interleaved  pairs are neighbours, as in the paper; otherwise dimensions half of rot_dim apart, as in GPT-NeoX
    """
    rot_dim = cos_sin.shape[-1]
    half = rot_dim // 2
    cos, sin = cos_sin[:, None, :half], cos_sin[:, None, half:]
    if interleaved:
        first, second = x[..., :rot_dim:2], x[..., 1:rot_dim:2]
    else:
        first, second = x[..., :half], x[..., half:rot_dim]
    left, right = first.float(), second.float()
    rotated_first = torch.addcmul(left * cos, right, sin, value=-1)
    second.copy_(torch.addcmul(right * cos, left, sin))
    first.copy_(rotated_first)


def whole_head_angles(cos_sin: Tensor, interleaved: bool) -> tuple[Tensor, Tensor]:
    """Factors of a head, and of the head with the partners of each pair exchanged; their sum is the head rotated.

    cos_sin  [..., rot_dim]  as in `rotate_`
    returns  two of the same shape
    """
    cos, sin = cos_sin.chunk(2, dim=-1)
    if interleaved:
        return cos.repeat_interleave(2, -1), torch.stack([-sin, sin], dim=-1).flatten(-2)
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def exchanged(x: Tensor, interleaved: bool) -> Tensor:
    """x [..., rot_dim] with the partners of each pair exchanged."""
    if interleaved:
        return x.view(*x.shape[:-1], -1, 2).flip(-1).flatten(-2)
    return x.roll(x.shape[-1] // 2, -1)


@cache
def _scalar(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device)

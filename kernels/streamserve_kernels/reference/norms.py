"""Norms in torch. Arithmetic is fp32, rounded to the input's dtype once, at the end."""

from __future__ import annotations

from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor


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


@cache
def _scalar(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, dtype=torch.float32, device=device)

"""The rotation of rotary embeddings, in torch. Arithmetic is fp32, rounded to the input's dtype once, at the end."""

from __future__ import annotations

import torch
from torch import Tensor


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

"""Attention as TorchInductor compiles it: plain torch whose products are sums of elements."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from streamserve.models.aot.shape import AttentionShape


class DecodeStep(NamedTuple):
    """A step with one new token of each sequence, as `TracedAttention` takes it.

    slots       [rows]  int64, where keys and values go: block * block_size + offset, none negative
    owners      [units]  int64, the row that a unit belongs to
    tables      [units, width]  int64, each unit's blocks
    first, end  [units]  int64, the tokens of a unit that are seen, counted from its first block's; at least one is
    units       [rows, most]  int64, the units of each row, and -1
    """

    slots: Tensor
    owners: Tensor
    tables: Tensor
    first: Tensor
    end: Tensor
    units: Tensor


class TracedAttention(nn.Module):
    """A layer's attention in steps with one new token of each sequence, and the write of any tokens to the cache.

    A sequence attends in units of so many blocks at most, whose results are then put together (split-KV, as in Flash-Decoding,
    https://crfm.stanford.edu/2023/10/12/flashdecoding.html), so that no sequence pays for a longer one beside it.
    """

    def __init__(self, shape: AttentionShape, q_norm: nn.Module | None, k_norm: nn.Module | None) -> None:
        super().__init__()
        self._shape = shape
        self.q_norm, self.k_norm = q_norm, k_norm

    def forward(self, qkv: Tensor, inputs: DecodeStep, rotations: Tensor, kv_cache: Tensor) -> Tensor:
        """qkv     [rows, (q_heads + 2 * kv_heads) * head_dim]
        rotations  [rows, planes, rot_dim]  fp32, factors of a head, and of a head with the partners of each pair exchanged;
                   then that of its queries
        kv_cache   [blocks, 2, kv_heads, block_size, head_dim], changed in place; NaN in it may reach rows that do not see it
        returns    [rows, q_heads * head_dim]
        """
        q = self.write(qkv, kv_cache, rotations, inputs.slots)
        return self._put_together(*self._attend(q, kv_cache, inputs), inputs.units).to(qkv.dtype)

    def write(self, qkv: Tensor, kv_cache: Tensor, rotations: Tensor, slots: Tensor) -> Tensor:
        """Norm and rotate heads, write keys and values to the cache; the queries, [tokens, q_heads, head_dim].

        Arguments as in `forward`, a row per token.
        """
        shape = self._shape
        heads = qkv.view(qkv.shape[0], shape.q_heads + 2 * shape.kv_heads, shape.head_dim)
        q, k, v = torch.split(heads, [shape.q_heads, shape.kv_heads, shape.kv_heads], dim=1)
        if self.q_norm is not None and self.k_norm is not None and not shape.norm_rotated:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k = _rotate(q, rotations, shape), _rotate(k, rotations, shape)
        if self.q_norm is not None and self.k_norm is not None and shape.norm_rotated:
            q, k = self.q_norm(q), self.k_norm(k)
        if shape.scales_queries:
            q = (q.float() * rotations[:, 2:, :1]).to(q.dtype)
        heads_of_block = torch.arange(2 * shape.kv_heads, device=slots.device) * shape.block_size
        blocks, offsets = slots // shape.block_size, slots % shape.block_size
        places = (blocks * (2 * shape.kv_heads * shape.block_size) + offsets).unsqueeze(1) + heads_of_block
        entries = torch.cat([k, v], dim=1).view(-1, shape.head_dim)
        kv_cache.view(-1, shape.head_dim).index_copy_(0, places.view(-1), entries)
        return q.contiguous()

    def _attend(self, q: Tensor, kv_cache: Tensor, step: DecodeStep) -> tuple[Tensor, Tensor, Tensor]:
        """Largest score, sum of weights [units, kv_heads, heads of a group] and weighted values [.., head_dim] of each unit."""
        shape = self._shape
        (num_units, width), kv_heads = step.tables.shape, shape.kv_heads
        # Products as sums of elements, not as batched products of matrices: those would want a copy of all keys and values.
        # [units, kv_heads, width, block_size, head_dim]
        keys, values = (kv_cache[:, which][step.tables].transpose(1, 2).float() for which in (0, 1))
        queries = q.view(q.shape[0], kv_heads, -1, 1, 1, shape.head_dim)[step.owners].float() * shape.scale
        place = torch.arange(width * shape.block_size, device=q.device)
        seen = ((place >= step.first.unsqueeze(1)) & (place < step.end.unsqueeze(1))).unsqueeze(1)
        highest, totals, sums = [], [], []
        # Heads that share keys side by side, so that each key is read and widened once.
        for head in range(shape.q_heads // shape.kv_heads):
            scores = (queries[:, :, head] * keys).sum(-1).view(num_units, kv_heads, -1)
            if shape.softcap is not None:
                scores = torch.tanh(scores / shape.softcap) * shape.softcap
            scores = torch.where(seen, scores, float("-inf"))
            highest.append(scores.amax(-1))
            weights = torch.exp(scores - highest[-1].unsqueeze(-1))
            totals.append(weights.sum(-1))
            sums.append((weights.view(num_units, kv_heads, width, -1, 1) * values).sum((2, 3)))
        return torch.stack(highest, 2), torch.stack(totals, 2), torch.stack(sums, 2)

    def _put_together(self, highest: Tensor, totals: Tensor, sums: Tensor, units: Tensor) -> Tensor:
        """[rows, q_heads * head_dim] fp32"""
        absent, places = (units < 0).view(*units.shape, 1, 1), units.clamp(min=0)
        scores = torch.where(absent, float("-inf"), highest[places])
        shares = torch.exp(scores - scores.amax(1, keepdim=True))
        total = (shares * totals[places]).sum(1)
        attended = (shares.unsqueeze(-1) * sums[places]).sum(1) / total.unsqueeze(-1)
        return attended.view(units.shape[0], -1)


def _rotate(x: Tensor, rotations: Tensor, shape: AttentionShape) -> Tensor:
    """[rows, heads, head_dim], rounded to its dtype."""
    rot_dim = shape.rot_dim
    if rot_dim == 0:
        return x
    wide = x[..., :rot_dim].float()
    if shape.interleaved:
        exchanged = torch.stack([wide[..., 1::2], wide[..., ::2]], dim=-1).flatten(-2)
    else:
        left, right = wide.chunk(2, dim=-1)
        exchanged = torch.cat([right, left], dim=-1)
    turned = (wide * rotations[:, :1] + exchanged * rotations[:, 1:2]).to(x.dtype)
    return turned if rot_dim == x.shape[-1] else torch.cat([turned, x[..., rot_dim:]], dim=-1)

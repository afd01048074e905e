"""What is compiled of a model's layers: a whole layer of a decode step, and what comes before and after attention in others.

Each is plain torch, and computes what `DecoderLayer` of the models computes through the references. What a model fixes is
constant; how many rows there are, units of attention and blocks of the cache, stays open. Weights are arguments, so that all
layers of one shape share a piece: a list, in the order in which they are used.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamserve.models.aot.products import Product
from streamserve.models.aot.shape import LayerShape


class BeforeAttention(nn.Module):
    """Norm, projection, rotation, and the write of keys and values to the cache, for any tokens."""

    def __init__(self, shape: LayerShape, *, few: bool = False) -> None:
        super().__init__()
        self._shape = shape
        self._qkv = Product(shape.qkv, few=few)

    def forward(self, hidden: Tensor, kv_cache: Tensor, rotations: Tensor, slots: Tensor, weights: list[Tensor]) -> Tensor:
        """The queries, [tokens, q_heads, head_dim]. Arguments as in `DecodeLayer`, a row per token.

        weights  input norm, qkv, and the norms of query and key heads where the model has them
        """
        return self.queries(hidden, kv_cache, rotations, slots, iter(weights))

    def queries(self, hidden: Tensor, kv_cache: Tensor, rotations: Tensor, slots: Tensor, weights: Iterator[Tensor]) -> Tensor:
        """As `forward`; takes its weights off the iterator."""
        shape = self._shape
        qkv = self._qkv(_norm(hidden, next(weights), shape.eps), weights)
        heads = qkv.view(hidden.shape[0], shape.q_heads + 2 * shape.kv_heads, shape.head_dim)
        q, k, v = torch.split(heads, [shape.q_heads, shape.kv_heads, shape.kv_heads], dim=1)
        if shape.qk_norm:
            q, k = _norm(q, next(weights), shape.eps), _norm(k, next(weights), shape.eps)
        q, k = _rotate(q, rotations, shape.rot_dim), _rotate(k, rotations, shape.rot_dim)
        heads_of_block = torch.arange(2 * shape.kv_heads, device=slots.device) * shape.block_size
        blocks, offsets = slots // shape.block_size, slots % shape.block_size
        places = (blocks * (2 * shape.kv_heads * shape.block_size) + offsets).unsqueeze(1) + heads_of_block
        entries = torch.cat([k, v], dim=1).view(-1, shape.head_dim)
        kv_cache.view(-1, shape.head_dim).index_copy_(0, places.view(-1), entries)
        return q.contiguous()


class AfterAttention(nn.Module):
    """Output projection and MLP, for any tokens."""

    def __init__(self, shape: LayerShape, *, few: bool = False) -> None:
        super().__init__()
        self._shape = shape
        self._output, self._down = Product(shape.output, few=few), Product(shape.down, few=few)
        self._gate_up = Product(shape.gate_up, few=few)

    def forward(self, attended: Tensor, hidden: Tensor, weights: list[Tensor]) -> Tensor:
        """attended [tokens, q_heads * head_dim], hidden [tokens, hidden_size] -> the next layer's hidden state

        weights  output, norm of the MLP, gate and up, down
        """
        return self.hidden(attended, hidden, iter(weights))

    def hidden(self, attended: Tensor, hidden: Tensor, weights: Iterator[Tensor]) -> Tensor:
        """As `forward`; takes its weights off the iterator."""
        hidden = self._output.add(attended, hidden, weights)
        gate_up = self._gate_up(_norm(hidden, next(weights), self._shape.eps), weights)
        gate, up = gate_up.float().chunk(2, dim=-1)
        opened = F.silu(gate) if self._shape.activation == "silu" else F.gelu(gate, approximate="tanh")
        return self._down.add((opened * up).to(hidden.dtype), hidden, weights)


class DecodeLayer(nn.Module):
    """All of a layer, for one new token of each sequence.

    A sequence attends in units of so many blocks at most, whose results are then put together (split-KV, as in Flash-Decoding,
    https://crfm.stanford.edu/2023/10/12/flashdecoding.html), so that no sequence pays for a longer one beside it.
    """

    def __init__(self, shape: LayerShape, *, few: bool = False) -> None:
        """few  for up to `INT4_FEW_ROWS` rows, which packed weights multiply"""
        super().__init__()
        self._shape = shape
        self._before, self._after = BeforeAttention(shape, few=few), AfterAttention(shape, few=few)

    def forward(
        self,
        hidden: Tensor,
        kv_cache: Tensor,
        rotations: Tensor,
        slots: Tensor,
        owners: Tensor,
        tables: Tensor,
        first: Tensor,
        end: Tensor,
        units: Tensor,
        weights: list[Tensor],
    ) -> Tensor:
        """hidden     [rows, hidden_size]
        kv_cache      [blocks, 2, kv_heads, block_size, head_dim], changed in place; every slot holds finite numbers
        rotations     [rows, 2, rot_dim]  fp32, factors of a head, and of a head with its halves exchanged
        slots         [rows]  int64, where keys and values go: block * block_size + offset, none negative
        owners        [units]  int64, the row that a unit belongs to
        tables        [units, width]  int64, each unit's blocks
        first, end    [units]  int64, the tokens of a unit that are seen, counted from its first block's; at least one is
        units         [rows, most]  int64, the units of each row, and -1
        weights       those of `BeforeAttention`, then those of `AfterAttention`
        returns       [rows, hidden_size]
        """
        tensors = iter(weights)
        q = self._before.queries(hidden, kv_cache, rotations, slots, tensors)
        attended = self._put_together(*self._attend(q, kv_cache, owners, tables, first, end), units)
        return self._after.hidden(attended.to(hidden.dtype), hidden, tensors)

    def _attend(
        self, q: Tensor, kv_cache: Tensor, owners: Tensor, tables: Tensor, first: Tensor, end: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Largest score, sum of weights [units, kv_heads, heads of a group] and weighted values [.., head_dim] of each unit."""
        shape = self._shape
        (num_units, width), kv_heads = tables.shape, shape.kv_heads
        # Products as sums of elements, not as batched products of matrices: those would want a copy of all keys and values.
        # [units, kv_heads, width, block_size, head_dim]
        keys, values = (kv_cache[:, which][tables].transpose(1, 2).float() for which in (0, 1))
        queries = q.view(q.shape[0], kv_heads, -1, 1, 1, shape.head_dim)[owners].float() * shape.scale
        place = torch.arange(width * shape.block_size, device=q.device)
        seen = ((place >= first.unsqueeze(1)) & (place < end.unsqueeze(1))).unsqueeze(1)
        highest, totals, sums = [], [], []
        # Heads that share keys side by side, so that each key is read and widened once.
        for head in range(shape.q_heads // shape.kv_heads):
            scores = (queries[:, :, head] * keys).sum(-1).view(num_units, kv_heads, -1)
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


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _rotate(x: Tensor, rotations: Tensor, rot_dim: int) -> Tensor:
    """[rows, heads, head_dim], rounded to its dtype."""
    wide = x[..., :rot_dim].float()
    left, right = wide.chunk(2, dim=-1)
    exchanged = torch.cat([right, left], dim=-1)
    turned = (wide * rotations[:, :1] + exchanged * rotations[:, 1:]).to(x.dtype)
    return turned if rot_dim == x.shape[-1] else torch.cat([turned, x[..., rot_dim:]], dim=-1)

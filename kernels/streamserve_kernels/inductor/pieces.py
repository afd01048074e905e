"""What is compiled of a model's layers: norm, gated activation, rotation with the KV write, and a decode step's attention.

Each is plain torch, and computes what the references `rms_norm`, `silu_mul` or `gelu_tanh_mul`, `rotary_write` and
`rotary_attention` compute. Shapes that a model fixes are constants of the module; the number of rows, of blocks and of cache
blocks stays open.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamserve_kernels.reference.projections import Activation


@dataclass(frozen=True)
class LayerShape:
    """Everything the compiled code of a model's layers depends on.

    dtype       "bfloat16", "float16" or "float32", of activations, weights and KV cache
    rot_dim     dimensions of a head that are rotated
    block_size  tokens per block of the KV cache
    eps, scale  of the norms, of the attention scores
    qk_norm     query and key heads are normed before they are rotated
    """

    dtype: str
    hidden_size: int
    intermediate_size: int
    q_heads: int
    kv_heads: int
    head_dim: int
    rot_dim: int
    block_size: int
    eps: float
    scale: float
    activation: Activation
    qk_norm: bool

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype


class Norm(nn.Module):
    """RMS norm of the hidden state."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self._eps = shape.eps

    def forward(self, x: Tensor, weight: Tensor) -> Tensor:
        """x [rows, hidden_size], weight [hidden_size] -> [rows, hidden_size]"""
        return _norm(x, weight, self._eps)


class Gate(nn.Module):
    """The gated activation of an MLP."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self._activation = shape.activation

    def forward(self, x: Tensor) -> Tensor:
        """x [rows, 2 * intermediate_size], the gate in the first half -> [rows, intermediate_size]"""
        gate, up = x.float().chunk(2, dim=-1)
        opened = F.silu(gate) if self._activation == "silu" else F.gelu(gate, approximate="tanh")
        return (opened * up).to(x.dtype)


class RotaryWrite(nn.Module):
    """What attention begins with, for any tokens: split, norm, rotate, and write keys and values to the cache."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self._shape = shape

    def forward(
        self,
        qkv: Tensor,
        kv_cache: Tensor,
        cos: Tensor,
        sin: Tensor,
        places: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
    ) -> Tensor:
        """The queries, [tokens, q_heads, head_dim]. Arguments as in `DecodeAttention`, a row per token."""
        shape = self._shape
        q_heads, kv_heads, head_dim = shape.q_heads, shape.kv_heads, shape.head_dim
        split = qkv.view(qkv.shape[0], q_heads + 2 * kv_heads, head_dim)
        q, k, v = split[:, :q_heads], split[:, q_heads : q_heads + kv_heads], split[:, q_heads + kv_heads :]
        if q_norm is not None and k_norm is not None:
            q, k = _norm(q, q_norm, shape.eps), _norm(k, k_norm, shape.eps)
        q, k = _rotate(q, cos, sin, shape.rot_dim), _rotate(k, cos, sin, shape.rot_dim)
        kv_cache.view(-1, head_dim).index_copy_(0, places.view(-1), torch.cat([k, v], dim=1).view(-1, head_dim))
        return q.contiguous()


class DecodeAttention(nn.Module):
    """All of attention between the two projections, for one new token of each sequence."""

    def __init__(self, shape: LayerShape) -> None:
        super().__init__()
        self._shape = shape
        self._rotate_and_write = RotaryWrite(shape)

    def forward(
        self,
        qkv: Tensor,
        kv_cache: Tensor,
        cos: Tensor,
        sin: Tensor,
        places: Tensor,
        cells: Tensor,
        first: Tensor,
        end: Tensor,
        q_norm: Tensor | None = None,
        k_norm: Tensor | None = None,
    ) -> Tensor:
        """qkv            [rows, (q_heads + 2 * kv_heads) * head_dim]
        kv_cache          [blocks, 2, kv_heads, block_size, head_dim], changed in place; every slot holds finite numbers
        cos, sin          [rows, 1, rot_dim]  fp32, for whole heads and for heads with their halves exchanged
        places            [rows, 2 * kv_heads]  int64, where key and value heads go in the cache as [places, head_dim]
        cells             [2, rows * q_heads, width]  int64, each query head's blocks of keys and of values in the cache
                          as [cells, block_size, head_dim]
        first, end        [rows * q_heads]  int64, the tokens that a query head sees, counted from the first of `cells`
        q_norm, k_norm    [head_dim], where the model has them
        returns           [rows, q_heads * head_dim]
        """
        shape = self._shape
        head_dim, block = shape.head_dim, shape.block_size
        rows, heads, width = qkv.shape[0], cells.shape[1], cells.shape[2]
        q = self._rotate_and_write(qkv, kv_cache, cos, sin, places, q_norm, k_norm)

        # Products as sums of elements, not as batched products of matrices: those would want a copy of all keys and values.
        cached = kv_cache.view(-1, block, head_dim)
        query = q.reshape(heads, 1, 1, head_dim).float() * shape.scale
        scores = (query * cached[cells[0]].float()).sum(-1).view(heads, width * block)
        place = torch.arange(width * block, device=qkv.device)
        seen = (place >= first.unsqueeze(1)) & (place < end.unsqueeze(1))
        scores = torch.where(seen, scores, float("-inf"))
        weights = torch.exp(scores - scores.amax(-1, keepdim=True))
        summed = (weights.view(heads, width, block, 1) * cached[cells[1]].float()).sum((1, 2))
        return (summed / weights.sum(-1, keepdim=True)).to(qkv.dtype).view(rows, shape.q_heads * head_dim)


def _norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps) * weight).to(x.dtype)


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, rot_dim: int) -> Tensor:
    """[rows, heads, head_dim], rounded to its dtype."""
    wide = x[..., :rot_dim].float()
    left, right = wide.chunk(2, dim=-1)
    turned = (wide * cos + torch.cat([right, left], dim=-1) * sin).to(x.dtype)
    return turned if rot_dim == x.shape[-1] else torch.cat([turned, x[..., rot_dim:]], dim=-1)

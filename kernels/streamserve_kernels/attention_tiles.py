"""What the attention kernels share: finding blocks, norming and rotating heads, scaling scores.

Device functions only. They know a layer's cache and nothing of a batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def block_ids(table_ptr, start, last, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """The blocks of the tokens from `start`, a multiple of BLOCK_N: [BLOCK_N], or one for all; read up to token `last`."""
    if BLOCK_SIZE % BLOCK_N == 0:
        blocks = tl.load(table_ptr + start // BLOCK_SIZE, mask=start <= last, other=0)
    else:
        tokens = start + tl.arange(0, BLOCK_N)
        blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=tokens <= last, other=0)
    return blocks


@triton.jit
def scaled(scores, scale, SOFTCAP: tl.constexpr):
    """Scaled and capped scores in units of log2(e), so that exp2 makes them weights."""
    if SOFTCAP is None:
        scores = scores * (scale * 1.4426950408889634)
    else:
        # tanh(z) is 2 sigmoid(2 z) - 1
        scores = (2.0 * tl.sigmoid(scores * (2.0 * scale / SOFTCAP)) - 1.0) * (SOFTCAP * 1.4426950408889634)
    return scores


@triton.jit
def turned(x, partner, weight, partner_weight, cos, sin, eps, HEAD_DIM: tl.constexpr, NORM: tl.constexpr, ROTATE: tl.constexpr):
    """Heads [heads, LANES] normed and rotated; `partner` holds at each place what is half a head away."""
    dtype = x.dtype
    if NORM:
        wide = x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / HEAD_DIM + eps)[:, None]
        x = (wide * scale * weight).to(dtype)
        partner = (partner.to(tl.float32) * scale * partner_weight).to(dtype)
    if ROTATE:
        x = (x.to(tl.float32) * cos + partner.to(tl.float32) * sin).to(dtype)
    return x


@triton.jit
def norm_weights(norm_ptr, HEAD_DIM: tl.constexpr, LANES: tl.constexpr):
    """A head norm's weights [1, LANES], and those half a head away."""
    lanes = tl.arange(0, LANES)[None, :]
    weight = tl.load(norm_ptr + lanes, mask=lanes < HEAD_DIM, other=0.0).to(tl.float32)
    return weight, tl.load(norm_ptr + (lanes + HEAD_DIM // 2) % HEAD_DIM).to(tl.float32)


@triton.jit
def angles(cos_sin_ptr, positions, HEAD_DIM: tl.constexpr, LANES: tl.constexpr):
    """Cosines and signed sines [positions, LANES] for `turned`."""
    lanes = tl.arange(0, LANES)[None, :]
    places = cos_sin_ptr + positions[:, None] * HEAD_DIM + lanes % (HEAD_DIM // 2)
    sin = tl.load(places + HEAD_DIM // 2)
    return tl.load(places), tl.where(lanes < HEAD_DIM // 2, -sin, sin)


def compute_dtype(dtype: torch.dtype) -> tl.dtype:
    """Of a kernel's products."""
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]

"""Device functions that the attention kernels share: block lookup, norm and rotation of heads, scaling of scores.

They know the cache of one layer, and nothing of a batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl


@triton.jit
def block_ids(table_ptr, start, last, BLOCK_SIZE: tl.constexpr, BLOCK_N: tl.constexpr):
    """Block ids of BLOCK_N tokens from `start`, a multiple of BLOCK_N: [BLOCK_N], or a scalar if one block holds them all.

    The table is read up to the entry of token `last`.
    """
    if BLOCK_SIZE % BLOCK_N == 0:
        blocks = tl.load(table_ptr + start // BLOCK_SIZE, mask=start <= last, other=0)
    else:
        tokens = start + tl.arange(0, BLOCK_N)
        blocks = tl.load(table_ptr + tokens // BLOCK_SIZE, mask=tokens <= last, other=0)
    return blocks


@triton.jit
def scaled(scores, scale, SOFTCAP: tl.constexpr):
    """Scale and cap scores, in units of log2(e): exp2 of the result is the softmax weight."""
    if SOFTCAP is None:
        scores = scores * (scale * 1.4426950408889634)
    else:
        # tanh(z) is 2 sigmoid(2 z) - 1
        scores = (2.0 * tl.sigmoid(scores * (2.0 * scale / SOFTCAP)) - 1.0) * (SOFTCAP * 1.4426950408889634)
    return scores


@triton.jit
def norm_and_rotate(
    x, partner, weight, partner_weight, cos, sin, eps, HEAD_DIM: tl.constexpr, NORM: tl.constexpr, ROTATE: tl.constexpr
):
    """RMS norm and rotation of heads [heads, LANES]; `partner` holds in each lane the element half a head away."""
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
    """Weights of a head norm, [1, LANES], and the same half a head away."""
    lanes = tl.arange(0, LANES)[None, :]
    weight = tl.load(norm_ptr + lanes, mask=lanes < HEAD_DIM, other=0.0).to(tl.float32)
    return weight, tl.load(norm_ptr + (lanes + HEAD_DIM // 2) % HEAD_DIM).to(tl.float32)


@triton.jit
def angles(cos_sin_ptr, positions, HEAD_DIM: tl.constexpr, LANES: tl.constexpr):
    """Cosines and signed sines [positions, LANES] for `norm_and_rotate`."""
    lanes = tl.arange(0, LANES)[None, :]
    angle_ptrs = cos_sin_ptr + positions[:, None] * HEAD_DIM + lanes % (HEAD_DIM // 2)
    sin = tl.load(angle_ptrs + HEAD_DIM // 2)
    return tl.load(angle_ptrs), tl.where(lanes < HEAD_DIM // 2, -sin, sin)


def compute_dtype(dtype: torch.dtype) -> tl.dtype:
    """Triton's name of the dtype in which a kernel multiplies tensors of `dtype`."""
    return {torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.float32: tl.float32}[dtype]

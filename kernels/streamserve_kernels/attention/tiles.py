"""Device functions that the attention kernels share: block lookup, norm and rotation of heads, scaling of scores.

They know the cache of one layer, and nothing of a batch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from streamserve_kernels.launch import compute_dtype
from streamserve_kernels.reference.attention.kv_format import is_eight_bit


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
def pair_dims(lane, half, INTERLEAVED: tl.constexpr):
    """The dimensions of a head that pair `lane` consists of."""
    if INTERLEAVED:
        first, second = 2 * lane, 2 * lane + 1
    else:
        first, second = lane, half + lane
    return first, second


@triton.jit
def partner_of(lanes, HEAD_DIM: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The dimension that each one is paired with, where the whole head rotates."""
    if INTERLEAVED:
        partners = (lanes ^ 1) % HEAD_DIM
    else:
        partners = (lanes + HEAD_DIM // 2) % HEAD_DIM
    return partners


@triton.jit
def query_factor(positions, BETA: tl.constexpr, LENGTH: tl.constexpr):
    """`QueryScaling.factors`"""
    return 1.0 + BETA * tl.log((1 + positions // LENGTH).to(tl.float32))


@triton.jit
def norm_and_rotate(
    x, partner, weight, partner_weight, cos, sin, eps,
    HEAD_DIM: tl.constexpr, NORM: tl.constexpr, NORM_ROTATED: tl.constexpr, ROTATE: tl.constexpr,
):  # fmt: skip
    """RMS norm and rotation of heads [heads, LANES]; `partner` holds in each lane the other element of its pair."""
    dtype = x.dtype
    if ROTATE and NORM_ROTATED:
        # Lanes past the head have partners, and must not count in the norm.
        inside = tl.arange(0, x.shape[1])[None, :] < HEAD_DIM
        x = tl.where(inside, x.to(tl.float32) * cos + partner.to(tl.float32) * sin, 0.0).to(dtype)
    if NORM:
        wide = x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=1) / HEAD_DIM + eps)[:, None]
        x = (wide * scale * weight).to(dtype)
        partner = (partner.to(tl.float32) * scale * partner_weight).to(dtype)
    if ROTATE and not NORM_ROTATED:
        x = (x.to(tl.float32) * cos + partner.to(tl.float32) * sin).to(dtype)
    return x


@triton.jit
def norm_weights(norm_ptr, HEAD_DIM: tl.constexpr, LANES: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Weights of a head norm, [1, LANES], and those of each lane's partner."""
    lanes = tl.arange(0, LANES)[None, :]
    weight = tl.load(norm_ptr + lanes, mask=lanes < HEAD_DIM, other=0.0).to(tl.float32)
    return weight, tl.load(norm_ptr + partner_of(lanes, HEAD_DIM, INTERLEAVED)).to(tl.float32)


@triton.jit
def angles(cos_sin_ptr, positions, HEAD_DIM: tl.constexpr, LANES: tl.constexpr, INTERLEAVED: tl.constexpr):
    """Cosines and signed sines [positions, LANES] for `norm_and_rotate`."""
    lanes = tl.arange(0, LANES)[None, :]
    if INTERLEAVED:
        pairs = lanes // 2 % (HEAD_DIM // 2)
        is_first = lanes % 2 == 0
    else:
        pairs = lanes % (HEAD_DIM // 2)
        is_first = lanes < HEAD_DIM // 2
    angle_ptrs = cos_sin_ptr + positions[:, None] * HEAD_DIM + pairs
    sin = tl.load(angle_ptrs + HEAD_DIM // 2)
    return tl.load(angle_ptrs), tl.where(is_first, -sin, sin)


@triton.jit
def narrowed(q, scale, COMPUTE: tl.constexpr):
    """Queries in the type that 8-bit keys are multiplied in, and the factor of their scores.

    A power of two is divided out of queries for fp16, whose range is smaller than that of bf16; its precision is higher.
    """
    if tl.float16 == COMPUTE:
        q = q.to(tl.float32)
        largest = tl.max(tl.max(tl.abs(q), axis=1), axis=0)
        power = (largest.to(tl.int32, bitcast=True) & 0x7F800000).to(tl.float32, bitcast=True)
        power = tl.where(power == 0.0, 1.0, power)
        q = q / power
        scale *= power
    return q.to(COMPUTE), scale


def attention_dtype(dtype: torch.dtype, cache_dtype: torch.dtype) -> tl.dtype:
    """The same for queries of `dtype` and a cache: 8-bit floats are widened to fp16, or further."""
    return compute_dtype(torch.float16 if is_eight_bit(cache_dtype) and dtype == torch.bfloat16 else dtype)

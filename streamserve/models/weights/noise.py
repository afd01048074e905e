"""Random numbers in place of a checkpoint's."""

from __future__ import annotations

import torch
from torch import Tensor

STD = 0.02
"""Standard deviation of random weights."""

_NUM_DRAWN = (1 << 20) + 7
"""Larger weights repeat them, so that billions of weights cost a copy and not a generator's time.

A prime: rows of a matrix must not repeat each other.
"""


def draw() -> Tensor:
    """Normal noise of `STD` in fp32, on the CPU; the same each time."""
    return torch.randn(_NUM_DRAWN, generator=torch.Generator().manual_seed(0)).mul_(STD)


def random_words(like: Tensor) -> Tensor:
    """int32 numbers of this shape and device, whose digits of four bits are 1 to 15 and 8 on average.

    Their places, hashed (Wellons, 2018, https://nullprogram.com/blog/2018/07/31/). Rows that follow from each other, or have a
    mean, would make tokens more alike from layer to layer, until they go to few of a mixture's experts.
    """
    words = torch.arange(like.numel(), dtype=torch.int32, device=like.device)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32)), (16, 1)):
        # Shifts of torch keep the sign.
        words ^= (words >> shift) & ((1 << 32 - shift) - 1)
        words *= factor
    zeros = ~(words | words >> 1 | words >> 2 | words >> 3) & 0x11111111
    return (words | zeros << 3).view_as(like)


def tile(target: Tensor, noise: Tensor) -> None:
    """Fill a contiguous tensor with noise [many], repeated."""
    flat, period = target.view(-1), noise.shape[0]
    whole = flat.shape[0] // period * period
    flat[:whole].view(-1, period).copy_(noise)
    flat[whole:].copy_(noise[: flat.shape[0] - whole])

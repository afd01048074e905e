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
    """int32 numbers of this shape and device whose four-bit digits are alike often.

    A linear congruential sequence (Numerical Recipes): the bits of normal noise are not.
    """
    count = torch.arange(like.numel(), dtype=torch.int32, device=like.device).view_as(like)
    return count * 1664525 + 1013904223


def tile(target: Tensor, noise: Tensor) -> None:
    """Fill a contiguous tensor with noise [many], repeated."""
    flat, period = target.view(-1), noise.shape[0]
    whole = flat.shape[0] // period * period
    flat[:whole].view(-1, period).copy_(noise)
    flat[whole:].copy_(noise[: flat.shape[0] - whole])

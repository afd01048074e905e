"""How a KV cache keeps its numbers: in the model's dtype, or as 8-bit floats that a scale of the layer is divided out of.

The format is the dtype of the cache. Keys and values of 8 bits are rounded once, when they are written; whatever attends reads
them back, the token that was just written too, so that results don't depend on the step in which a token came.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

EIGHT_BIT_DTYPES = (torch.float8_e4m3fn, torch.float8_e5m2)
"""Formats of 8-bit floats (Micikevicius et al., 2022, https://arxiv.org/abs/2209.05433)."""


class KvScales(NamedTuple):
    """What the numbers of a layer's 8-bit cache are multiplied by."""

    key: float = 1.0
    value: float = 1.0


UNSCALED = KvScales()


def is_eight_bit(dtype: torch.dtype) -> bool:
    """Whether a cache of this dtype keeps 8-bit floats."""
    return dtype in EIGHT_BIT_DTYPES


def quantize(x: Tensor, scale: float, dtype: torch.dtype) -> Tensor:
    """The 8-bit numbers nearest to x / scale, ties to even; what is beyond their range becomes its end.

    x        [...]  bf16|fp16|fp32
    dtype    one of `EIGHT_BIT_DTYPES`
    returns  [...]  of this dtype
    """
    largest = torch.finfo(dtype).max
    return (x.float() * (1.0 / scale)).clamp_(-largest, largest).to(dtype)


def bytes_of(numbers: Tensor) -> Tensor:
    """A view that every operation of torch takes: of 8-bit floats their bytes, of others themselves."""
    return numbers.view(torch.uint8) if is_eight_bit(numbers.dtype) else numbers


def widened(stored: Tensor, kept_as: torch.dtype, dtype: torch.dtype) -> Tensor:
    """What `bytes_of` numbers kept in one dtype are in another; `stored` itself where they are kept in that."""
    if not is_eight_bit(kept_as):
        return stored
    # Looked up: torch's own conversion of e4m3 takes eight times as long on a CPU.
    return _every_number(kept_as, dtype, stored.device).index_select(0, stored.int().view(-1)).view(stored.shape)


@cache
def _every_number(kept_as: torch.dtype, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[256], by their bytes."""
    return torch.arange(256, dtype=torch.uint8).view(kept_as).to(dtype).to(device)

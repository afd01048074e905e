"""What compiled layers are compiled for: the shape of a layer, and the forms of its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from streamserve_kernels import INT4_FEW_ROWS, Activation, BlockedWeight, Int4Weight, Weight

Form: TypeAlias = Literal["plain", "blocked"]


@dataclass(frozen=True)
class LinearShape:
    """A linear of a layer.

    form    of its weight: [out, in], or what only oneDNN reads
    digits  how many of 4 bits its weights have where up to `INT4_FEW_ROWS` rows are multiplied with packed ones, else 0
    """

    in_features: int
    out_features: int
    bias: bool
    form: Form
    digits: int


@dataclass(frozen=True)
class LayerShape:
    """Everything that a layer's machine code depends on.

    dtype       "bfloat16", "float16" or "float32", of activations, weights and KV cache
    rot_dim     dimensions of a head that are rotated
    block_size  tokens per block of the KV cache
    eps, scale  of the norms, of the attention scores
    qk_norm     query and key heads are normed before they are rotated
    """

    dtype: str
    q_heads: int
    kv_heads: int
    head_dim: int
    rot_dim: int
    block_size: int
    eps: float
    scale: float
    activation: Activation
    qk_norm: bool
    qkv: LinearShape
    output: LinearShape
    gate_up: LinearShape
    down: LinearShape

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def is_packed(self) -> bool:
        """Whether steps of few rows multiply other weights than steps of many."""
        return any(linear.digits for linear in (self.qkv, self.output, self.gate_up, self.down))


def linear_shape(weight: Weight, bias: Tensor | None) -> LinearShape:
    """Of a linear as the model has loaded it."""
    out_features, in_features = weight.shape
    form: Form = "plain" if isinstance(_wide(weight), Tensor) else "blocked"
    digits = weight.num_digits if isinstance(weight, Int4Weight) else 0
    return LinearShape(in_features, out_features, bias is not None, form, digits)


def linear_tensors(weight: Weight, bias: Tensor | None, *, few: bool) -> Sequence[Tensor]:
    """What a compiled piece takes of a linear: its weight, for packed ones their scales and zeros, and its bias.

    few  for pieces that multiply up to `INT4_FEW_ROWS` rows
    """
    biases = () if bias is None else (bias,)
    if few and isinstance(weight, Int4Weight):
        return (weight.packed, weight.scale_zero, *biases)
    wide = _wide(weight)
    return (wide if isinstance(wide, Tensor) else wide.blocked, *biases)


def is_few(rows: int) -> bool:
    """Whether packed weights, where there are some, multiply so many rows."""
    return rows <= INT4_FEW_ROWS


def _wide(weight: Weight) -> Tensor | BlockedWeight:
    return weight.expanded if isinstance(weight, Int4Weight) else weight

"""The function by which transformers' layers attend: over the paged cache, or observed without numbers.

Registered with transformers under a name of its own, so that it replaces nothing. Masks are not made for it: which tokens a
token sees follows from the step.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from streamserve.models.inputs import StepInputs
from streamserve_kernels import rotary_attention

NAME = "streamserve"
STEP = "streamserve_step"
"""The keyword argument of a model's forward that brings the step to its layers."""

_BOUND = "streamserve_attention"


class Attending(Protocol):
    """What a layer's attention module is bound to.

    query, key, value  [1, heads, tokens, size], rotated
    mask               as the layer passes it
    options            all other keyword arguments
    returns            [1, tokens, query heads, size of a value]
    """

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, options: Mapping[str, Any]
    ) -> Tensor: ...


def bind(module: nn.Module, attending: Attending) -> None:
    """Have the attention of this module done by `attending`."""
    setattr(module, _BOUND, attending)


def _attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: object = None, **options: Any
) -> tuple[Tensor, None]:
    attending: Attending = getattr(module, _BOUND)
    return attending(module, query, key, value, attention_mask, options), None


AttentionInterface.register(NAME, _attend)


@dataclass(frozen=True, slots=True)
class PagedStep:
    """A step and the cache it reads and writes.

    kv_caches  per layer [blocks, 2, kv_heads, block_size, head_dim]
    """

    inputs: StepInputs
    kv_caches: list[Tensor]


class CurrentStep(threading.local):
    """The step that a thread runs, for layers that are not passed keyword arguments: one of a model's own."""

    step: PagedStep | None = None


class PagedLayer:
    """The attention of one layer: writes keys and values to its cache, and attends over it."""

    def __init__(self, layer: int, current: CurrentStep) -> None:
        """layer  number of its cache"""
        self._layer = layer
        self._current = current

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, options: Mapping[str, Any]
    ) -> Tensor:
        step: PagedStep | None = options.get(STEP) or self._current.step
        assert step is not None
        inputs, cache = step.inputs, step.kv_caches[self._layer]
        head_dim, value_dim = cache.shape[-1], value.shape[-1]
        qkv = torch.cat([_rows(part, head_dim) for part in (query, key, value)], dim=-1)
        attended = rotary_attention(
            qkv.to(cache.dtype),
            inputs.positions,
            None,
            cache,
            inputs.slot_mapping[self._layer],
            inputs.block_tables[self._layer],
            inputs.seq_lens,
            inputs.query_start,
            q_heads=query.shape[1],
            kv_heads=key.shape[1],
            head_dim=head_dim,
            scale=scale_of(query, options),
            window=options.get("sliding_window") or None,
            softcap=options.get("softcap") or None,
            num_decodes=inputs.num_decodes,
            max_seq_len=inputs.max_seq_len,
            shared=inputs.shared,
        )
        return attended[None, ..., :value_dim].to(query.dtype)


def scale_of(query: Tensor, options: Mapping[str, Any]) -> float:
    """Factor of the scores that a layer asks for."""
    scale = options.get("scaling")
    return float(query.shape[-1] ** -0.5 if scale is None else scale)


def _rows(heads: Tensor, head_dim: int) -> Tensor:
    """[1, heads, tokens, size] -> [tokens, heads * head_dim], padded with zeros, which add nothing to scores and outputs."""
    padded = heads if heads.shape[-1] == head_dim else F.pad(heads, (0, head_dim - heads.shape[-1]))
    return padded[0].transpose(0, 1).flatten(1)

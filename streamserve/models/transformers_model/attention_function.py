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
from streamserve.models.weights.kv_scales import LayerKvScales
from streamserve_kernels import Heads, Scoring, StepTokens, rotary_attention

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


def bound(module: nn.Module) -> Attending | None:
    """What the attention of this module is done by; None where nothing was bound."""
    attending: Attending | None = getattr(module, _BOUND, None)
    return attending


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

    def __init__(self, layer: int, current: CurrentStep, dtype: torch.dtype, kv_scales: LayerKvScales | None = None) -> None:
        """layer  number of its cache
        dtype  in which it attends
        """
        self._layer = layer
        self._current = current
        self._dtype = dtype
        self._kv_scales = kv_scales

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: object, options: Mapping[str, Any]
    ) -> Tensor:
        head_dim, value_dim = max(query.shape[-1], value.shape[-1]), value.shape[-1]
        qkv = torch.cat([_rows(part, head_dim) for part in (query, key, value)], dim=-1)
        sinks: Tensor | None = options.get("s_aux")
        attended = self.attend(
            qkv,
            self.step(options),
            None,
            Heads(query.shape[1], key.shape[1], head_dim),
            Scoring(
                scale_of(query, options),
                options.get("sliding_window") or None,
                options.get("softcap") or None,
                None if sinks is None else sinks.float(),
            ),
        )
        return attended[None, ..., :value_dim].to(query.dtype)

    def step(self, options: Mapping[str, Any]) -> PagedStep:
        """The step that these keyword arguments bring, or the one that this thread runs."""
        step: PagedStep | None = options.get(STEP) or self._current.step
        assert step is not None
        return step

    def attend(self, qkv: Tensor, step: PagedStep, angles: Tensor | None, heads: Heads, scoring: Scoring) -> Tensor:
        """qkv [tokens, (q_heads + 2 * kv_heads) * head_dim] -> [tokens, q_heads, head_dim]; writes keys and values.

        angles  [tokens, rot_dim] fp32, cosines then sines of each token's position; None rotates nothing
        """
        inputs, cache = step.inputs, step.kv_caches[self._layer]
        # Angles are looked up by token, not by position: the rotation has been to the table already.
        places = inputs.positions if angles is None else inputs.shared.get("tokens", lambda: _count(inputs.positions))
        return rotary_attention(
            qkv.to(self._dtype),
            StepTokens(places, angles, inputs.slot_mapping[self._layer]),
            cache,
            inputs.sequences(self._layer),
            heads,
            scoring,
            kv_scales=None if self._kv_scales is None else self._kv_scales.scales,
            shared=inputs.shared,
        )


def scale_of(query: Tensor, options: Mapping[str, Any]) -> float:
    """Factor of the scores that a layer asks for."""
    scale = options.get("scaling")
    return float(query.shape[-1] ** -0.5 if scale is None else scale)


def _count(tokens: Tensor) -> Tensor:
    """[0, 1, ...], as many as there are tokens."""
    return torch.arange(tokens.shape[0], device=tokens.device)


def _rows(heads: Tensor, head_dim: int) -> Tensor:
    """[1, heads, tokens, size] -> [tokens, heads * head_dim], padded with zeros, which add nothing to scores and outputs."""
    padded = heads if heads.shape[-1] == head_dim else F.pad(heads, (0, head_dim - heads.shape[-1]))
    return padded[0].transpose(0, 1).flatten(1)

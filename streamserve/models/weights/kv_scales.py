"""The scales of a layer's KV cache of 8-bit floats, as checkpoints store them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch

from streamserve.errors import ConfigError
from streamserve.models.weights.destination import Destination, Region, Stored
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.source import StoredTensor
from streamserve_kernels import KvScales, is_eight_bit_cache

_KEYS = ("k_scale", "k_proj.k_scale", "attn.k_scale", "k_proj.output_scale")
_VALUES = ("v_scale", "v_proj.v_scale", "attn.v_scale", "v_proj.output_scale")
_BOTH = ("kv_scale",)
"""Ends of names: of compressed-tensors, ModelOpt, vLLM itself, older compressed-tensors; of AutoFP8, one for both."""

KV_SCALE_ENDS = tuple(f".{end}" for end in (*_KEYS, *_VALUES, *_BOTH, "q_scale"))
"""How names of such tensors end, with those of queries, which are not rounded here."""


class LayerKvScales(Stored):
    """What the numbers of a layer's cache are multiplied by: the checkpoint's scales where it has some, else 1.

    scales     keys' and values'; of one that is stored alone both, as in vLLM
    is_stored  whether the checkpoint has any
    """

    def __init__(self, attention: str, place: Placement) -> None:
        """attention  what the names of the tensors of the layer's attention begin with"""
        super().__init__()
        self.scales = KvScales()
        self.is_stored = False
        self._attention = attention
        self._dtype = place.kv_dtype
        self._found: dict[str, float] = {}

    def destinations(self) -> Iterator[Destination]:
        for ends, parts in ((_KEYS, ("key",)), (_VALUES, ("value",)), (_BOTH, ("key", "value"))):
            for end in ends:
                yield Destination(self._attention + end, Region.of(1), self._receive(parts), is_optional=True)

    def finish(self) -> None:
        self.is_stored = bool(self._found)
        if self.is_stored:
            largest = max(self._found.values())
            self.scales = KvScales(self._found.get("key", largest), self._found.get("value", largest))

    def _receive(self, parts: tuple[str, ...]) -> Callable[[StoredTensor], None]:
        def fill(stored: StoredTensor) -> None:
            if self._dtype == torch.float8_e5m2:
                raise ConfigError(
                    f"--kv-cache-dtype fp8_e5m2: the checkpoint stores scales for a cache of fp8_e4m3 ({stored.name!r}): "
                    "take fp8, or leave it out"
                )
            scale = float(stored.values.item())
            if not 0.0 < scale < math.inf:
                raise ConfigError(f"the checkpoint's scale {stored.name!r} of the KV cache is {scale}: it must be above 0")
            self._found |= dict.fromkeys(parts, scale)

        return fill


def kv_scales_of(attention: str, place: Placement) -> LayerKvScales | None:
    """The unfilled scales of a layer; None where its cache has no 8-bit floats."""
    return LayerKvScales(attention, place) if is_eight_bit_cache(place.kv_dtype) else None

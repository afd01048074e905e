"""What machine code of a layer is compiled for: everything that it depends on but for the weights' numbers.

Read off the layer: a layer can be compiled when all that it is made of can, whatever its class.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias, TypeGuard

import torch
from torch import nn

from streamserve.models.aot.weights import LinearShape, linear_shape
from streamserve.models.architectures.base import CausalModel, Layer, LayeredModel
from streamserve.models.layers.attention import AllHeadsNorm, Attention
from streamserve.models.layers.linear import Linear
from streamserve.models.layers.mlp import GatedMlp
from streamserve.models.layers.norm import RmsNorm

Setting: TypeAlias = str | int | float | bool


@dataclass(frozen=True)
class NormShape:
    """An RMS norm; dtype is that of its weight."""

    size: int
    eps: float
    dtype: str


@dataclass(frozen=True)
class AttentionShape:
    """rot_dim   dimensions of a head that are rotated; 0 where nothing is
    block_size  tokens per block of the KV cache
    eps         of the norms of heads
    scale       of the attention scores
    softcap     of the attention scores, or None
    qk_norm     query and key heads are normed: before they are rotated, or, with norm_rotated, after that
    interleaved neighbouring dimensions are rotated together
    scales_queries  rotated queries are multiplied by a number of their position
    """

    q_heads: int
    kv_heads: int
    head_dim: int
    rot_dim: int
    block_size: int
    eps: float
    scale: float
    softcap: float | None
    qk_norm: bool
    norm_rotated: bool
    interleaved: bool
    scales_queries: bool

    @property
    def planes(self) -> int:
        """Of a token's rotations: two factors of a head, and what queries are multiplied by."""
        return 3 if self.scales_queries else 2


@dataclass(frozen=True)
class LayerShape:
    """Everything that a layer's machine code depends on.

    kind      the layer's class
    dtype     "bfloat16", "float16" or "float32", of activations and KV cache
    settings  plain values that the layer and its MLP compute with, by name
    parts     its linears and norms, by name
    """

    kind: str
    dtype: str
    hidden_size: int
    attention: AttentionShape
    settings: tuple[tuple[str, Setting], ...]
    parts: tuple[tuple[str, LinearShape | NormShape], ...]

    @property
    def torch_dtype(self) -> torch.dtype:
        dtype: torch.dtype = getattr(torch, self.dtype)
        return dtype

    @property
    def is_packed(self) -> bool:
        """Whether steps of few rows multiply other weights than steps of many."""
        return any(isinstance(part, LinearShape) and part.digits for _, part in self.parts)


def can_compile(model: CausalModel) -> TypeGuard[LayeredModel]:
    """Whether every layer is made of what can be compiled: RMS norms, and forms of weights that are known here."""
    if not isinstance(model, LayeredModel):
        return False
    return all(_shape_or_none(model, layer, 1) is not None for layer in range(len(model.layers)))


def layer_shapes(model: LayeredModel, block_size: int) -> list[LayerShape]:
    """What has to be compiled for each layer of a model for which `can_compile` is true."""
    shapes = [_shape_or_none(model, layer, block_size) for layer in range(len(model.layers))]
    return [shape for shape in shapes if shape is not None]


def parts_of(layer: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The layer and all modules in it by name, in order, but for what linears are made of."""
    yield prefix.removesuffix("."), layer
    if not isinstance(layer, Linear):
        for name, child in layer.named_children():
            yield from parts_of(child, f"{prefix}{name}.")


def _shape_or_none(model: LayeredModel, index: int, block_size: int) -> LayerShape | None:
    layer, cos_sin = model.layers[index], model.ropes.by_layer[index]
    if type(layer.attention) is not Attention or layer.attention.sinks is not None:
        return None
    if layer.attention.kv_scales is not None:
        return None
    if layer.attention.heads.query_scaling is not None and cos_sin is None:
        return None
    settings: list[tuple[str, Setting]] = []
    parts: list[tuple[str, LinearShape | NormShape]] = []
    for name, module in parts_of(layer):
        if module is layer or type(module) in (GatedMlp, AllHeadsNorm):
            settings += _settings(name, module)
        elif type(module) is Linear and (linear := linear_shape(module)) is not None:
            parts.append((name, linear))
        elif type(module) is RmsNorm:
            parts.append((name, NormShape(len(module.weight), module.eps, _name(module.weight.dtype))))
        elif module is not layer.attention:
            return None
    attention = _attention_shape(layer.attention, 0 if cos_sin is None else cos_sin.shape[1], block_size)
    dtype = _name(_dtype_of(layer))
    return LayerShape(_class_of(layer), dtype, model.arch.hidden_size, attention, tuple(settings), tuple(parts))


def _attention_shape(attention: Attention, rot_dim: int, block_size: int) -> AttentionShape:
    heads, scoring = attention.heads, attention.scoring
    return AttentionShape(
        q_heads=heads.q_heads,
        kv_heads=heads.kv_heads,
        head_dim=heads.head_dim,
        rot_dim=rot_dim,
        block_size=block_size,
        eps=heads.eps,
        scale=scoring.scale,
        softcap=scoring.softcap,
        qk_norm=attention.q_norm is not None,
        norm_rotated=heads.norm_rotated,
        interleaved=heads.interleaved,
        scales_queries=heads.query_scaling is not None,
    )


def _settings(prefix: str, module: nn.Module) -> Iterator[tuple[str, Setting]]:
    for name, value in vars(module).items():
        if isinstance(value, Setting) and name != "training" and not name.startswith("_"):
            yield f"{prefix}.{name}", value


def _dtype_of(layer: Layer) -> torch.dtype:
    linear = next(module for _, module in parts_of(layer) if isinstance(module, Linear))
    return linear.form.dtype


def _class_of(layer: Layer) -> str:
    return f"{type(layer).__module__}.{type(layer).__qualname__}"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")

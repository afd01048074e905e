"""What is compiled of a model's layers: a whole layer of a decode step, and what comes before and after attention in others.

It is traced from the model's own layer: the order of its arithmetic is that of `forward`, `before_attention` and
`after_attention`, which run as they are. A copy of the layer has other kernels in the places of its weights, norms and
attention: plain torch that Inductor fuses. The kernels' references themselves can't be traced: for a single row a norm takes a
number out of a tensor, scalars are kept as tensors from call to call, and paged attention makes its indices on the host.

What a model fixes is constant; how many rows there are, units of attention and blocks of the cache, stays open. Weights are
arguments, so that all layers of one shape share a piece: a list, in the order of the layer's modules.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from streamserve.models.aot.attention import DecodeStep, TracedAttention
from streamserve.models.aot.shape import LayerShape, parts_of
from streamserve.models.aot.weights import LinearShape, Sample, TracedWeight, no_memory, rms_norm, traced_weight, weight_tensors
from streamserve.models.architectures.base import Layer
from streamserve.models.layers.attention import AllHeadsNorm
from streamserve.models.layers.linear import Linear
from streamserve.models.layers.norm import RmsNorm


class Piece(nn.Module):
    """A part of a layer, with the layer's weights as its last argument, a list.

    samples  random weights
    """

    def __init__(self, layer: Layer, part: type[nn.Module]) -> None:
        """layer  a traced copy"""
        super().__init__()
        inner = part(layer)
        parameters = list(_parameters(layer))
        names = [f"layer.{name}" for name, _ in parameters]
        self.samples = [sample for _, sample in parameters]

        def call(arguments: tuple[Tensor, ...], weights: list[Tensor]) -> Tensor:
            result: Tensor = functional_call(inner, dict(zip(names, weights, strict=True)), arguments)
            return result

        # Not as a module of this one: tracing would take the parameters, which have no memory, for constants.
        self._call: Callable[[tuple[Tensor, ...], list[Tensor]], Tensor] = call

    def forward(self, *arguments: Any) -> Tensor:
        *tensors, weights = arguments
        return self._call(tuple(tensors), weights)


class _BeforeAttention(nn.Module):
    """For any tokens: the queries, with keys and values written to the cache."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, kv_cache: Tensor, rotations: Tensor, slots: Tensor) -> Tensor:
        """hidden [tokens, hidden_size]; the rest, and what is returned, as in `TracedAttention.write`"""
        attention = self.layer.attention
        assert isinstance(attention, TracedAttention)
        return attention.write(self.layer.before_attention(hidden), kv_cache, rotations, slots)


class _AfterAttention(nn.Module):
    """For any tokens: the layer's hidden state."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, attended: Tensor) -> Tensor:
        """hidden [tokens, hidden_size], attended [tokens, q_heads * head_dim] -> [tokens, hidden_size]"""
        return self.layer.after_attention(hidden, attended)


class _DecodeLayer(nn.Module):
    """All of a layer, for one new token of each sequence."""

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, hidden: Tensor, kv_cache: Tensor, rotations: Tensor, *step: Tensor) -> Tensor:
        """hidden [rows, hidden_size], step the fields of a `DecodeStep` -> [rows, hidden_size]"""
        result: Tensor = self.layer(hidden, DecodeStep(*step), rotations, kv_cache)
        return result


_PARTS: dict[str, type[nn.Module]] = {
    "before": _BeforeAttention,
    "after": _AfterAttention,
    "decode": _DecodeLayer,
    "decode_few": _DecodeLayer,
}


def piece_names(shape: LayerShape) -> list[str]:
    """The pieces that a layer of this shape has."""
    return [name for name in _PARTS if name != "decode_few" or shape.is_packed]


def trace_piece(name: str, layer: Layer, shape: LayerShape) -> Piece:
    """One of `piece_names`, made of a layer of the model; the layer is left as it is."""
    return Piece(_traced_layer(layer, shape, few=name == "decode_few"), _PARTS[name])


def layer_tensors(layer: Layer, *, few: bool) -> list[Tensor]:
    """A layer's weights as pieces take them. few  for "decode_few"."""
    return list(_tensors(layer, few))


class _TracedNorm(nn.Module):
    """An RMS norm spelled out for Inductor."""

    def __init__(self, norm: RmsNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self.weight = no_memory(len(norm.weight), dtype=norm.weight.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        return residual + self.forward(x)


class _TracedAllHeadsNorm(nn.Module):
    """Norms of all queries together and of all keys, spelled out for Inductor."""

    def __init__(self, q_norm: _TracedNorm, k_norm: _TracedNorm) -> None:
        super().__init__()
        self.q_norm, self.k_norm = q_norm, k_norm

    def forward(self, qkv: Tensor) -> Tensor:
        q, k = len(self.q_norm.weight), len(self.k_norm.weight)
        queries, keys, values = torch.split(qkv, [q, k, qkv.shape[1] - q - k], dim=1)
        return torch.cat([self.q_norm(queries), self.k_norm(keys), values], dim=1)


def _traced_layer(layer: Layer, shape: LayerShape, *, few: bool) -> Layer:
    """A copy of a layer with what is traced in the places of its attention, norms, weights and biases."""
    linears, norms = dict(shape.parts), dict[int, _TracedNorm]()
    copies: dict[int, nn.Module | nn.Parameter] = {}
    for name, module in parts_of(layer):
        if isinstance(module, RmsNorm):
            norms[id(module)] = _TracedNorm(module)
        elif isinstance(module, Linear):
            linear = linears[name]
            assert isinstance(linear, LinearShape)
            copies[id(module.form)] = traced_weight(linear, shape.torch_dtype, few=few)
            if module.bias is not None:
                copies[id(module.bias)] = no_memory(len(module.bias), dtype=module.bias.dtype)
    for _, module in parts_of(layer):
        if isinstance(module, AllHeadsNorm):
            copies[id(module)] = _TracedAllHeadsNorm(norms[id(module.q_norm)], norms[id(module.k_norm)])
    q_norm, k_norm = layer.attention.q_norm, layer.attention.k_norm
    copies[id(layer.attention)] = TracedAttention(shape.attention, norms.get(id(q_norm)), norms.get(id(k_norm)))
    # `deepcopy` takes what is listed as copied already.
    return copy.deepcopy(layer, {**copies, **norms})


def _tensors(layer: Layer, few: bool) -> Iterator[Tensor]:
    for _, module in parts_of(layer):
        if isinstance(module, Linear):
            yield from weight_tensors(module.form, few=few)
            if module.bias is not None:
                yield module.bias
        elif isinstance(module, RmsNorm):
            yield module.weight


def _parameters(layer: Layer) -> Iterator[tuple[str, Sample]]:
    """The parameters of a traced layer by name, in the order of `layer_tensors`."""
    for name, module in parts_of(layer):
        if isinstance(module, Linear):
            assert isinstance(module.form, TracedWeight)
            for (parameter, _), sample in zip(module.form.named_parameters(), module.form.samples(), strict=True):
                yield f"{name}.form.{parameter}", sample
            if module.bias is not None:
                yield f"{name}.bias", _random(module.bias)
        elif isinstance(module, _TracedNorm):
            yield f"{name}.weight", _random(module.weight)


def _random(parameter: Tensor) -> Sample:
    values = torch.randn(parameter.shape).to(parameter.dtype)
    return Sample(values, values)

"""A decoder whose layers run in compiled pieces, on a CPU: the same weights and numbers, fewer calls.

Straight-line code over another model's layers, which stay the specification. A layer of a step of single tokens is one call;
with prompts in it, what comes before attention and after it is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from streamserve.models.aot.shape import LayerShape, LinearShape, is_few, linear_shape, linear_tensors
from streamserve.models.aot.store import LayerKernels
from streamserve.models.aot.units import Units, attention_units
from streamserve.models.arch import ModelArch
from streamserve.models.architectures.base import CausalModel
from streamserve.models.architectures.decoder import Decoder, DecoderLayer, gate_activation
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.attention import Attention
from streamserve.models.layers.linear import Linear
from streamserve.models.registry import REGISTRY
from streamserve_kernels import paged_attention


class CompiledDecoder(CausalModel):
    """A `Decoder`, run by the pieces compiled for its layers."""

    def __init__(self, decoder: Decoder, kernels: Sequence[LayerKernels]) -> None:
        """decoder  keeps its weights, which are used where they are
        kernels  of each layer, for its `layer_shapes`
        """
        super().__init__(decoder.arch)
        self._decoder = decoder
        # Layers with the same rotation share a table.
        tables = {id(cos_sin): _rotations(cos_sin) for cos_sin in decoder.ropes.by_layer if cos_sin is not None}
        layers = (layer for layer in decoder.layers if isinstance(layer, DecoderLayer))
        parts = zip(layers, decoder.ropes.by_layer, kernels, strict=True)
        self._layers = [_CompiledLayer(layer, tables[id(cos_sin)], pieces) for layer, cos_sin, pieces in parts]

    def forward(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        if bool((inputs.slot_mapping[0] < 0).any()):
            # Padding: compiled code would write it to the end of the cache.
            return self._decoder.forward(inputs, kv_caches)
        hidden: Tensor = self._decoder.embedding(inputs.token_ids)
        decodes = inputs.num_decodes == len(inputs.seq_lens)
        for layer, kv_cache in zip(self._layers, kv_caches, strict=True):
            hidden = layer.decode(hidden, inputs, kv_cache) if decodes else layer.run(hidden, inputs, kv_cache)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self._decoder.logits(hidden)


class _Weights(NamedTuple):
    """A layer's tensors as the pieces take them."""

    before: list[Tensor]
    after: list[Tensor]
    layer: list[Tensor]


class _CompiledLayer:
    """A `DecoderLayer`, its rotation and its pieces."""

    def __init__(self, layer: DecoderLayer, rotations: Tensor, kernels: LayerKernels) -> None:
        self._attention: Attention = layer.attention
        self._rotations = rotations
        self._kernels = kernels
        self._weights = _weights(layer, few=False)
        self._few_weights = _weights(layer, few=True)

    def decode(self, hidden: Tensor, inputs: StepInputs, kv_cache: Tensor) -> Tensor:
        """All of the layer in a step with one new token a sequence: hidden [rows, hidden_size] -> the same shape."""
        shape, layer, window = self._kernels.shape, self._attention.layer, self._attention.window
        block_tables = inputs.block_tables[layer]

        def units_of_step() -> Units:
            return attention_units(shape, inputs.positions, block_tables, window, kv_cache.shape[0])

        units = inputs.shared.get(("attention units", shape.block_size, window, id(block_tables)), units_of_step)
        arguments = (hidden, kv_cache, self._turns(inputs), inputs.slot_mapping[layer], *units)
        if self._kernels.decode_few is not None and is_few(len(hidden)):
            return self._kernels.decode_few(arguments, self._few_weights.layer)
        return self._kernels.decode(arguments, self._weights.layer)

    def run(self, hidden: Tensor, inputs: StepInputs, kv_cache: Tensor) -> Tensor:
        """All of the layer in any step: hidden [tokens, hidden_size] -> the same shape."""
        layer = self._attention.layer
        arguments = (hidden, kv_cache, self._turns(inputs), inputs.slot_mapping[layer])
        q = self._kernels.before(arguments, self._weights.before)
        attended = paged_attention(
            q,
            kv_cache,
            inputs.block_tables[layer],
            inputs.seq_lens,
            inputs.query_start,
            scale=self._attention.scale,
            window=self._attention.window,
            num_decodes=inputs.num_decodes,
            max_seq_len=inputs.max_seq_len,
            shared=inputs.shared,
        )
        return self._kernels.after((attended.flatten(1), hidden), self._weights.after)

    def _turns(self, inputs: StepInputs) -> Tensor:
        """[tokens, 2, rot_dim]"""
        rotations = self._rotations
        return inputs.shared.get(("angles", id(rotations)), lambda: rotations.index_select(0, inputs.positions))


def _rotations(cos_sin: Tensor) -> Tensor:
    """cos_sin [positions, rot_dim], cosines and sines -> [positions, 2, rot_dim], as the pieces multiply whole heads."""
    cos, sin = cos_sin.chunk(2, dim=-1)
    return torch.stack([torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)], dim=1)


def _weights(layer: DecoderLayer, *, few: bool) -> _Weights:
    head_norms = [norm.weight for norm in (layer.attention.q_norm, layer.attention.k_norm) if norm is not None]
    qkv, output, gate_up, down = (
        linear_tensors(linear.weight, linear.bias, few=few) for linear in (layer.qkv, layer.output, layer.gate_up, layer.down)
    )
    before = [layer.input_norm.weight, *qkv, *head_norms]
    after = [*output, layer.mlp_norm.weight, *gate_up, *down]
    return _Weights(before, after, before + after)


def can_compile(arch: ModelArch) -> bool:
    """Whether a model's layers can be compiled: those of families built of `DecoderLayer`, which rotate."""
    return REGISTRY[arch.architecture].build is Decoder and arch.softcap is None and None not in arch.ropes


def layer_shapes(model: Decoder, block_size: int) -> list[LayerShape]:
    """What has to be compiled for each layer of a model for which `can_compile` is true."""
    arch = model.arch
    return [
        _layer_shape(arch, layer, rope.rot_dim, block_size)
        for layer, rope in zip(model.layers, arch.ropes, strict=True)
        if isinstance(layer, DecoderLayer) and rope is not None
    ]


def _layer_shape(arch: ModelArch, layer: DecoderLayer, rot_dim: int, block_size: int) -> LayerShape:
    def shape_of(linear: Linear) -> LinearShape:
        return linear_shape(linear.weight, linear.bias)

    return LayerShape(
        dtype=str(layer.input_norm.weight.dtype).removeprefix("torch."),
        q_heads=arch.q_heads,
        kv_heads=arch.kv_heads,
        head_dim=arch.head_dim,
        rot_dim=rot_dim,
        block_size=block_size,
        eps=arch.norm_eps,
        scale=arch.attention_scale,
        activation=gate_activation(arch),
        qk_norm=arch.qk_norm,
        qkv=shape_of(layer.qkv),
        output=shape_of(layer.output),
        gate_up=shape_of(layer.gate_up),
        down=shape_of(layer.down),
    )

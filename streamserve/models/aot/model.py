"""A model whose layers run in compiled pieces, on a CPU: the same weights and numbers, fewer calls.

A layer of a step of single tokens is one call; with prompts in it, what comes before attention and after it is compiled.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from streamserve.models.aot.pieces import layer_tensors
from streamserve.models.aot.store import LayerKernels
from streamserve.models.aot.units import Units, attention_units
from streamserve.models.architectures.base import Layer, LayeredModel
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.attention import Attention
from streamserve.models.weights.forms.int4 import is_few
from streamserve_kernels import paged_attention


class CompiledModel(LayeredModel):
    """A model, run by the pieces compiled for its layers."""

    def __init__(self, model: LayeredModel, kernels: Sequence[LayerKernels]) -> None:
        """model  keeps its weights, which are used where they are
        kernels  of each layer, for its `layer_shapes`
        """
        super().__init__(model.arch, model.layers, model.ropes)
        self._model = model
        # Layers with the same rotation share a table.
        ropes = zip(model.ropes.by_layer, model.layers, strict=True)
        tables = {id(cos_sin): _rotations(cos_sin, layer.attention) for cos_sin, layer in ropes}
        parts = zip(model.layers, model.ropes.by_layer, kernels, strict=True)
        self._compiled = [_CompiledLayer(layer, tables[id(cos_sin)], pieces) for layer, cos_sin, pieces in parts]

    def forward(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        if bool((inputs.slot_mapping[0] < 0).any()):
            # Padding: compiled code would write it to the end of the cache.
            return self._model.forward(inputs, kv_caches)
        hidden = self.embed(inputs)
        decodes = inputs.num_decodes == len(inputs.seq_lens)
        for layer, kv_cache in zip(self._compiled, kv_caches, strict=True):
            hidden = layer.decode(hidden, inputs, kv_cache) if decodes else layer.run(hidden, inputs, kv_cache)
        if decodes and not hidden.sum().isfinite():
            # Compiled sums have what is masked in them, times 0: one row's NaN would be that of others.
            return self._model.forward(inputs, kv_caches)
        return hidden

    def embed(self, inputs: StepInputs) -> Tensor:
        return self._model.embed(inputs)

    def logits(self, hidden: Tensor) -> Tensor:
        return self._model.logits(hidden)

    def states(self, hidden: Tensor) -> Tensor:
        return self._model.states(hidden)

    @property
    def state_size(self) -> int:
        return self._model.state_size


class _CompiledLayer:
    """A layer, its rotation and its pieces."""

    def __init__(self, layer: Layer, rotations: Tensor | None, kernels: LayerKernels) -> None:
        self._attention = layer.attention
        self._rotations = rotations
        self._kernels = kernels
        self._tensors = layer_tensors(layer, few=False)
        self._few_tensors = layer_tensors(layer, few=True)

    def decode(self, hidden: Tensor, inputs: StepInputs, kv_cache: Tensor) -> Tensor:
        """All of the layer in a step with one new token a sequence: hidden [rows, hidden_size] -> the same shape."""
        attention, layer, window = self._kernels.shape.attention, self._attention.layer, self._attention.scoring.window
        block_tables = inputs.block_tables[layer]

        def units_of_step() -> Units:
            return attention_units(attention, inputs.positions, block_tables, window, kv_cache.shape[0])

        units = inputs.shared.get(("attention units", attention.block_size, window, id(block_tables)), units_of_step)
        arguments = (hidden, kv_cache, self._step_rotations(inputs), inputs.slot_mapping[layer], *units)
        if self._kernels.decode_few is not None and is_few(len(hidden)):
            return self._kernels.decode_few(arguments, self._few_tensors)
        return self._kernels.decode(arguments, self._tensors)

    def run(self, hidden: Tensor, inputs: StepInputs, kv_cache: Tensor) -> Tensor:
        """All of the layer in any step: hidden [tokens, hidden_size] -> the same shape."""
        layer = self._attention.layer
        arguments = (hidden, kv_cache, self._step_rotations(inputs), inputs.slot_mapping[layer])
        q = self._kernels.before(arguments, self._tensors)
        attended = paged_attention(q, kv_cache, inputs.sequences(layer), self._attention.scoring, shared=inputs.shared)
        return self._kernels.after((hidden, attended.flatten(1)), self._tensors)

    def _step_rotations(self, inputs: StepInputs) -> Tensor:
        """[tokens, planes, rot_dim]"""
        rotations = self._rotations
        if rotations is None:
            return torch.empty(len(inputs.positions), 2, 0)
        return inputs.shared.get(("rotations", id(rotations)), lambda: rotations.index_select(0, inputs.positions))


def _rotations(cos_sin: Tensor | None, attention: Attention) -> Tensor | None:
    """cos_sin [positions, rot_dim], cosines and sines -> [positions, planes, rot_dim], as the pieces multiply whole heads."""
    if cos_sin is None:
        return None
    cos, sin = cos_sin.chunk(2, dim=-1)
    if attention.heads.interleaved:
        planes = [cos.repeat_interleave(2, -1), torch.stack([-sin, sin], dim=-1).flatten(-2)]
    else:
        planes = [torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)]
    if (query_scaling := attention.heads.query_scaling) is not None:
        factors = query_scaling.factors(torch.arange(len(cos_sin), device=cos_sin.device))
        planes.append(factors.unsqueeze(1).expand_as(cos_sin))
    return torch.stack(planes, dim=1)

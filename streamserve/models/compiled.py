"""A decoder whose layers do their small work in compiled pieces, on a CPU: the same weights and numbers, fewer calls.

Straight-line code over another model's layers, which stay the specification. Only a step of single tokens attends in compiled
code; with prompts in it, attention is the layers' own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from streamserve.models.arch import ModelArch
from streamserve.models.decoder import Decoder, DecoderLayer, gate_activation
from streamserve.models.inputs import StepInputs
from streamserve.models.model import CausalModel
from streamserve.models.registry import REGISTRY
from streamserve_kernels import linear, linear_residual
from streamserve_kernels.inductor.decode import DecodeGroup, decode_groups
from streamserve_kernels.inductor.library import LayerKernels
from streamserve_kernels.inductor.pieces import LayerShape


class CompiledDecoder(CausalModel):
    """A `Decoder`, run by the pieces compiled for its `layer_shape`."""

    def __init__(self, decoder: Decoder, kernels: LayerKernels) -> None:
        """decoder  keeps its weights, which are used where they are"""
        super().__init__(decoder.arch)
        self._decoder = decoder
        self._kernels = kernels

    def forward(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        hidden: Tensor = self._decoder.embedding(inputs.token_ids)
        decodes_only = inputs.num_decodes == len(inputs.seq_lens) and bool((inputs.slot_mapping >= 0).all())
        for layer, cos_sin, kv_cache in zip(self._decoder.layers, self._decoder.ropes.by_layer, kv_caches, strict=True):
            assert isinstance(layer, DecoderLayer)
            assert cos_sin is not None, "a decoder without rotations has no compiled pieces"
            qkv = linear(self._kernels.norm(hidden, layer.input_norm.weight), layer.qkv.weight, layer.qkv.bias)
            if decodes_only:
                attended = self._attend(layer, qkv, inputs, cos_sin, kv_cache)
            else:
                attended = layer.attention(qkv, inputs, cos_sin, kv_cache)
            hidden = linear_residual(attended, layer.output.weight, hidden, layer.output.bias)
            gate_up = linear(self._kernels.norm(hidden, layer.mlp_norm.weight), layer.gate_up.weight, layer.gate_up.bias)
            hidden = linear_residual(self._kernels.gate(gate_up), layer.down.weight, hidden, layer.down.bias)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        embedding = self._decoder.embedding
        return linear(self._kernels.norm(hidden, embedding.norm.weight), embedding.head.weight)

    def _attend(self, layer: DecoderLayer, qkv: Tensor, inputs: StepInputs, cos_sin: Tensor, kv_cache: Tensor) -> Tensor:
        """[rows, q_heads * head_dim], one new token a sequence."""
        attention = layer.attention

        def groups_of_step() -> list[DecodeGroup]:
            places = (inputs.positions, inputs.slot_mapping, inputs.block_tables)
            return decode_groups(self._kernels.shape, *places, cos_sin, attention.window, kv_cache.shape[0])

        groups = inputs.shared.get(("decode groups", id(cos_sin), attention.window), groups_of_step)
        norms = [norm.weight for norm in (attention.q_norm, attention.k_norm) if norm is not None]
        if groups[0].rows is None:
            return self._kernels.attend(qkv, kv_cache, *groups[0].indices, *norms)
        attended = qkv.new_empty(len(qkv), attention.q_heads * attention.head_dim)
        for rows, indices in groups:
            attended[rows] = self._kernels.attend(qkv[rows], kv_cache, *indices, *norms)
        return attended


def layer_shape(arch: ModelArch, dtype: torch.dtype, block_size: int) -> LayerShape | None:
    """What would have to be compiled for a model, or None for a family whose layers are others than `DecoderLayer`."""
    rotated = {rope.rot_dim if rope is not None else 0 for rope in arch.ropes}
    plain = arch.softcap is None and arch.logit_softcap is None and len(rotated) == 1 and 0 not in rotated
    if REGISTRY[arch.architecture].build is not Decoder or not plain:
        return None
    return LayerShape(
        dtype=str(dtype).removeprefix("torch."),
        hidden_size=arch.hidden_size,
        intermediate_size=arch.intermediate_size,
        q_heads=arch.q_heads,
        kv_heads=arch.kv_heads,
        head_dim=arch.head_dim,
        rot_dim=rotated.pop(),
        block_size=block_size,
        eps=arch.norm_eps,
        scale=arch.attention_scale,
        activation=gate_activation(arch),
        qk_norm=arch.qk_norm,
    )

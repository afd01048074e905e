"""A decoder whose layers do their small work in compiled pieces, on a CPU: the same weights and numbers, fewer calls.

Straight-line code over another model's layers, which stay the specification. A step of single tokens attends in compiled code;
with prompts in it, only what comes before attention is compiled.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from streamserve.models.arch import ModelArch
from streamserve.models.attention import Attention
from streamserve.models.decoder import Decoder, DecoderLayer, gate_activation
from streamserve.models.inputs import StepInputs
from streamserve.models.model import CausalModel
from streamserve.models.registry import REGISTRY
from streamserve_kernels import linear, linear_residual, paged_attention
from streamserve_kernels.inductor.indices import DecodeGroup, decode_groups, token_indices
from streamserve_kernels.inductor.pieces import LayerShape
from streamserve_kernels.inductor.store import LayerKernels


class CompiledDecoder(CausalModel):
    """A `Decoder`, run by the pieces compiled for its `layer_shape`."""

    def __init__(self, decoder: Decoder, kernels: LayerKernels) -> None:
        """decoder  keeps its weights, which are used where they are"""
        super().__init__(decoder.arch)
        self._decoder = decoder
        self._kernels = kernels

    def forward(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        kernels = self._kernels
        hidden: Tensor = self._decoder.embedding(inputs.token_ids)
        attend = self._attention_of(inputs)
        for layer, cos_sin, kv_cache in zip(self._decoder.layers, self._decoder.ropes.by_layer, kv_caches, strict=True):
            assert isinstance(layer, DecoderLayer)
            assert cos_sin is not None, "a decoder without rotations has no compiled pieces"
            qkv = linear(kernels.norm(hidden, layer.input_norm.weight), layer.qkv.weight, layer.qkv.bias)
            attended = attend(layer.attention, qkv, inputs, cos_sin, kv_cache)
            hidden = linear_residual(attended, layer.output.weight, hidden, layer.output.bias)
            gate_up = linear(kernels.norm(hidden, layer.mlp_norm.weight), layer.gate_up.weight, layer.gate_up.bias)
            hidden = linear_residual(kernels.gate(gate_up), layer.down.weight, hidden, layer.down.bias)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        embedding = self._decoder.embedding
        return linear(self._kernels.norm(hidden, embedding.norm.weight), embedding.head.weight)

    def _attention_of(self, inputs: StepInputs) -> Callable[[Attention, Tensor, StepInputs, Tensor, Tensor], Tensor]:
        if bool((inputs.slot_mapping < 0).any()):
            return Attention.__call__  # padding: compiled code would write it to the end of the cache
        return self._attend_decodes if inputs.num_decodes == len(inputs.seq_lens) else self._attend

    def _attend(self, attention: Attention, qkv: Tensor, inputs: StepInputs, cos_sin: Tensor, kv_cache: Tensor) -> Tensor:
        """[tokens, q_heads * head_dim] of any step."""
        shape = self._kernels.shape
        indices = inputs.shared.get(
            ("token indices", id(cos_sin)),
            lambda: token_indices(shape, inputs.positions, inputs.slot_mapping, cos_sin),
        )
        q = self._kernels.write(qkv, kv_cache, *indices, *_head_norms(attention))
        attended = paged_attention(
            q,
            kv_cache,
            inputs.block_tables,
            inputs.seq_lens,
            inputs.query_start,
            scale=attention.scale,
            window=attention.window,
            num_decodes=inputs.num_decodes,
            max_seq_len=inputs.max_seq_len,
            shared=inputs.shared,
        )
        return attended.flatten(1)

    def _attend_decodes(
        self, attention: Attention, qkv: Tensor, inputs: StepInputs, cos_sin: Tensor, kv_cache: Tensor
    ) -> Tensor:
        """[rows, q_heads * head_dim] of a step with one new token a sequence."""
        kernels, norms = self._kernels, _head_norms(attention)

        def groups_of_step() -> list[DecodeGroup]:
            places = (inputs.positions, inputs.slot_mapping, inputs.block_tables)
            return decode_groups(kernels.shape, *places, cos_sin, attention.window, kv_cache.shape[0])

        groups = inputs.shared.get(("decode groups", id(cos_sin), attention.window), groups_of_step)
        if groups[0].rows is None:
            return kernels.attend(qkv, kv_cache, *groups[0].indices, *norms)
        attended = qkv.new_empty(len(qkv), attention.q_heads * attention.head_dim)
        for rows, indices in groups:
            attended[rows] = kernels.attend(qkv[rows], kv_cache, *indices, *norms)
        return attended


def _head_norms(attention: Attention) -> list[Tensor]:
    return [norm.weight for norm in (attention.q_norm, attention.k_norm) if norm is not None]


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

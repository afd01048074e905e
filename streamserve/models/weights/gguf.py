"""Tensors of a .gguf file by transformers' names: dequantised, un-permuted, or as packed 4-bit weights.

llama.cpp stores the rows of Llama's q and k in an order of its own (pairs of dimensions side by side) and Gemma's norms plus
one; here they come out as transformers has them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from torch import Tensor

from streamserve.checkpoint.gguf_file import GgufFile
from streamserve.errors import ModelNotSupported
from streamserve.models.arch import ModelArch
from streamserve.models.layers.linear import Linear
from streamserve.models.weights.source import WeightSource
from streamserve_kernels import INT4_ROW_MULTIPLE, Int4Weight, pack_eight_bits, pack_four_bits

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}

LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_qkv": "self_attn.qkv_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

FAMILY_NAMES = {
    "Phi3ForCausalLM": {"ffn_up": "mlp.gate_up_proj"},
    "Gemma3ForCausalLM": {
        "post_attention_norm": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "post_ffw_norm": "post_feedforward_layernorm",
    },
}

DERIVED = {"rope_freqs.weight"}
"""Tensors that repeat what the configuration says."""

PERMUTED = {"LlamaForCausalLM", "MistralForCausalLM"}

BLOCK = 32
"""Weights that share a scale in the Q4_0, Q4_1 and Q8_0 forms."""


class GgufSource(WeightSource):
    """The tensors of one .gguf file."""

    def __init__(self, file: GgufFile, arch: ModelArch) -> None:
        self._file = file
        self._arch = arch
        self._stored = {self._name(name): name for name in file.tensors if name not in DERIVED}

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self._file.tensors.values())

    def tensors(self) -> Iterator[tuple[str, Tensor, int]]:
        for name, stored in self._stored.items():
            yield name, self._dequantized(name), self._file.tensors[stored].num_bytes

    def packed(self, linear: Linear) -> Int4Weight | None:
        """A linear's fused weight as 4-bit digits; None when a part of it is stored otherwise, or the kernel can't take it.

        The tensor that it replaces is filled and kept as its expanded form.
        """
        parts = [f"{name}.weight" for name in linear.names]
        kinds = {self._kind(part) for part in parts}
        expanded = linear.weight
        if not isinstance(expanded, Tensor) or expanded.shape[0] % INT4_ROW_MULTIPLE:
            return None
        if kinds <= {Kind.Q4_0, Kind.Q4_1}:
            quants, scale, zero = zip(*(_four_bits(self._raw(part), self._kind(part)) for part in parts), strict=True)
            return pack_four_bits(torch.cat(quants), torch.cat(scale), torch.cat(zero), expanded)
        if kinds == {Kind.Q8_0}:
            quants, scale = zip(*(_eight_bits(self._raw(part)) for part in parts), strict=True)
            return pack_eight_bits(torch.cat(quants), torch.cat(scale), expanded)
        return None

    def take(self, name: str) -> int:
        """Leave a tensor out of `tensors`, because `packed` delivered it; returns its stored bytes."""
        return self._file.tensors[self._stored.pop(name)].num_bytes

    def _name(self, stored: str) -> str:
        """blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight"""
        stem, _, kind = stored.rpartition(".")
        if stem in NAMES:
            return f"{NAMES[stem]}.{kind}"
        block, _, rest = stem.partition(".")
        layer, _, part = rest.partition(".")
        names = LAYER_NAMES | FAMILY_NAMES.get(self._arch.architecture, {})
        if block != "blk" or part not in names:
            raise ModelNotSupported(f"{self._file.path}: unknown tensor {stored!r} for {self._arch.architecture}")
        return f"model.layers.{layer}.{names[part]}.{kind}"

    def _kind(self, name: str) -> Kind | None:
        stored = self._stored.get(name)
        return self._file.tensors[stored].kind if stored is not None else None

    def _raw(self, name: str) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The stored bytes, row by row, in transformers' order of rows."""
        raw = self._file.raw(self._stored[name])
        heads = self._permuted_heads(name)
        return raw if heads is None else raw[transformers_rows(raw.shape[0], heads)]

    def _permuted_heads(self, name: str) -> int | None:
        if self._arch.architecture not in PERMUTED:
            return None
        if name.endswith("q_proj.weight"):
            return self._arch.q_heads
        return self._arch.kv_heads if name.endswith("k_proj.weight") else None

    def _dequantized(self, name: str) -> Tensor:
        tensor = self._file.tensors[self._stored[name]]
        raw = self._raw(name)
        if tensor.kind in (Kind.BF16, Kind.F16, Kind.F32):
            dtype = {Kind.BF16: torch.bfloat16, Kind.F16: torch.float16, Kind.F32: torch.float32}[tensor.kind]
            values = torch.frombuffer(bytearray(raw.tobytes()), dtype=dtype)
        else:
            try:
                values = torch.from_numpy(dequantize(raw, tensor.kind))
            except NotImplementedError as error:
                raise ModelNotSupported(f"{self._file.path}: {tensor.kind.name} weights are not supported") from error
        values = values.view(tensor.shape)
        if self._arch.architecture == "Gemma3ForCausalLM" and name.endswith("norm.weight"):
            values = values - 1.0
        return values


def transformers_rows(rows: int, heads: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each row of transformers' q or k projection lies in llama.cpp's, which pairs a head's dimensions i and i + half."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _eight_bits(raw: np.ndarray[Any, np.dtype[np.uint8]]) -> tuple[Tensor, Tensor]:
    """Blocks of Q8_0 as (quants [out, in] int8, scale [out, in / 32] fp32) of scale * q."""
    blocks = torch.from_numpy(raw.copy()).view(raw.shape[0], -1, 2 + BLOCK)
    scale = blocks[..., :2].contiguous().view(torch.float16).float()
    return blocks[..., 2:].contiguous().view(torch.int8).flatten(1), scale[..., 0]


def _four_bits(raw: np.ndarray[Any, np.dtype[np.uint8]], kind: Kind | None) -> tuple[Tensor, Tensor, Tensor]:
    """Blocks of Q4_0 or Q4_1 as (quants [out, in] uint8, scale, zero [out, in / 32] fp32) of scale * (q - 8) + zero."""
    header = 4 if kind is Kind.Q4_1 else 2
    blocks = torch.from_numpy(raw.copy()).view(raw.shape[0], -1, header + BLOCK // 2)
    numbers = blocks[..., :header].contiguous().view(torch.float16).float()
    low_high = blocks[..., header:]
    quants = torch.cat([low_high & 15, low_high >> 4], dim=-1).flatten(1)
    scale = numbers[..., 0]
    # Q4_1 stores minimum + scale * q, Q4_0 scale * (q - 8).
    zero = numbers[..., 1] + 8 * scale if kind is Kind.Q4_1 else torch.zeros_like(scale)
    return quants, scale, zero

"""Tensors of a .gguf file by transformers' names: dequantised, un-permuted, or as the integers that are stored.

llama.cpp stores the rows of Llama's q and k in an order of its own (pairs of dimensions side by side) and Gemma's norms plus
one; here they come out as transformers has them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np
import torch
from gguf.constants import GGMLQuantizationType as Kind
from gguf.quants import dequantize
from torch import Tensor

from streamserve.checkpoint.gguf_file import GgufFile
from streamserve.errors import ModelNotSupported
from streamserve.models.arch import ModelArch
from streamserve.models.weights.grouped import GroupedIntegers
from streamserve.models.weights.source import StoredTensor, WeightSource

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
    "ffn_gate_inp": "mlp.gate",
    "ffn_gate_exps": "mlp.experts.gate_proj",
    "ffn_up_exps": "mlp.experts.up_proj",
    "ffn_down_exps": "mlp.experts.down_proj",
}

_AFTER = {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}
_AROUND = _AFTER | {"ffn_norm": "pre_feedforward_layernorm"}
FAMILY_NAMES = {
    "Gemma2ForCausalLM": _AROUND,
    "Gemma3ForCausalLM": _AROUND,
    "Glm4ForCausalLM": {
        "post_attention_norm": "post_self_attn_layernorm",
        "ffn_up": "mlp.gate_up_proj",
        "post_ffw_norm": "post_mlp_layernorm",
    },
    "GptOssForCausalLM": {
        "post_attention_norm": "post_attention_layernorm",
        "attn_sinks": "self_attn.sinks",
        "ffn_gate_inp": "mlp.router",
    },
    "HunYuanDenseV1ForCausalLM": {"attn_q_norm": "self_attn.query_layernorm", "attn_k_norm": "self_attn.key_layernorm"},
    "Olmo2ForCausalLM": _AFTER,
    "Olmo3ForCausalLM": _AFTER,
    "Phi3ForCausalLM": {"ffn_up": "mlp.gate_up_proj"},
    "SeedOssForCausalLM": {"post_attention_norm": "post_attention_layernorm"},
}

DERIVED = {"rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight"}
"""Tensors that repeat what the configuration says."""

PERMUTED = {
    "GraniteForCausalLM",
    "LlamaForCausalLM",
    "Ministral3ForCausalLM",
    "MistralForCausalLM",
    "SmolLM3ForCausalLM",
}

BLOCK = 32
"""Weights that share a scale in the Q4_0, Q4_1 and Q8_0 forms."""

NUM_DIGITS = {Kind.Q4_0: 1, Kind.Q4_1: 1, Kind.Q8_0: 2}


class GgufSource(WeightSource):
    """The tensors of one .gguf file."""

    def __init__(self, file: GgufFile, arch: ModelArch) -> None:
        self._file = file
        self._arch = arch
        self._stored = {self._name(name): name for name in file.tensors if name not in DERIVED}

    @property
    def num_bytes(self) -> int:
        return sum(tensor.num_bytes for tensor in self._file.tensors.values())

    @property
    def num_digits(self) -> Mapping[str, int]:
        kinds = {name: self._file.tensors[stored].kind for name, stored in self._stored.items()}
        return {name: NUM_DIGITS[kind] for name, kind in kinds.items() if kind in NUM_DIGITS}

    @property
    def names(self) -> Collection[str]:
        return self._stored.keys()

    def tensor(self, name: str) -> StoredTensor:
        return GgufWeight(name, self._file, self._stored[name], self._arch)

    def tensors(self) -> Iterator[StoredTensor]:
        return map(self.tensor, self._stored)

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
        # A parameter of its own in transformers, and no module's weight.
        ending = "" if part == "attn_sinks" else f".{kind}"
        return f"model.layers.{layer}.{names[part]}{ending}"


class GgufWeight(StoredTensor):
    """One tensor of a .gguf file."""

    def __init__(self, name: str, file: GgufFile, stored: str, arch: ModelArch) -> None:
        """name    transformers' name of what the file calls `stored`"""
        tensor = file.tensors[stored]
        self.name, self.shape, self.num_bytes = name, tensor.shape, tensor.num_bytes
        self._kind = tensor.kind
        self._file, self._stored, self._arch = file, stored, arch

    @cached_property
    def values(self) -> Tensor:
        raw = self._raw()
        if self._kind in (Kind.BF16, Kind.F16, Kind.F32):
            dtype = {Kind.BF16: torch.bfloat16, Kind.F16: torch.float16, Kind.F32: torch.float32}[self._kind]
            values = torch.frombuffer(bytearray(raw.tobytes()), dtype=dtype)
        else:
            try:
                values = torch.from_numpy(dequantize(raw, self._kind))
            except NotImplementedError as error:
                raise ModelNotSupported(f"{self._file.path}: {self._kind.name} weights are not supported") from error
        values = values.view(self.shape)
        if self._arch.norm_offset and self.name.endswith("norm.weight"):
            values = values - self._arch.norm_offset
        return values

    @property
    def integers(self) -> GroupedIntegers:
        if self._kind not in NUM_DIGITS:
            raise LookupError(f"{self.name} is stored as {self._kind.name}, not as grouped integers")
        return _eight_bits(self._raw()) if self._kind is Kind.Q8_0 else _four_bits(self._raw(), self._kind)

    def _raw(self) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """The stored bytes, row by row, in transformers' order of rows."""
        raw = self._file.raw(self._stored)
        heads = self._permuted_heads()
        return raw if heads is None else raw[transformers_rows(raw.shape[0], heads)]

    def _permuted_heads(self) -> int | None:
        if self._arch.architecture not in PERMUTED:
            return None
        if self.name.endswith("q_proj.weight"):
            return self._arch.q_heads
        return self._arch.kv_heads if self.name.endswith("k_proj.weight") else None


def transformers_rows(rows: int, heads: int) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Where each row of transformers' q or k projection lies in llama.cpp's, which pairs a head's dimensions i and i + half."""
    return np.arange(rows).reshape(heads, rows // heads // 2, 2).swapaxes(1, 2).reshape(-1)


def _eight_bits(raw: np.ndarray[Any, np.dtype[np.uint8]]) -> GroupedIntegers:
    """Blocks of Q8_0."""
    blocks = torch.from_numpy(raw.copy()).view(raw.shape[0], -1, 2 + BLOCK)
    scale = blocks[..., :2].contiguous().view(torch.float16).float()
    return GroupedIntegers(blocks[..., 2:].contiguous().view(torch.int8).flatten(1), scale[..., 0], None)


def _four_bits(raw: np.ndarray[Any, np.dtype[np.uint8]], kind: Kind) -> GroupedIntegers:
    """Blocks of Q4_0 or Q4_1."""
    header = 4 if kind is Kind.Q4_1 else 2
    blocks = torch.from_numpy(raw.copy()).view(raw.shape[0], -1, header + BLOCK // 2)
    numbers = blocks[..., :header].contiguous().view(torch.float16).float()
    low_high = blocks[..., header:]
    quants = torch.cat([low_high & 15, low_high >> 4], dim=-1).flatten(1)
    scale = numbers[..., 0]
    # Q4_1 stores minimum + scale * q, Q4_0 scale * (q - 8).
    zero = numbers[..., 1] + 8 * scale if kind is Kind.Q4_1 else torch.zeros_like(scale)
    return GroupedIntegers(quants, scale, zero)

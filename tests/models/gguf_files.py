"""Writes a transformers model as llama.cpp's converter would: its names, its order of q and k rows, its norms."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from transformers import PreTrainedModel

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "ernie4_5": gguf.MODEL_ARCH.ERNIE4_5,
    "gemma": gguf.MODEL_ARCH.GEMMA,
    "gemma2": gguf.MODEL_ARCH.GEMMA2,
    "gemma3_text": gguf.MODEL_ARCH.GEMMA3,
    "glm4": gguf.MODEL_ARCH.GLM4,
    "granite": gguf.MODEL_ARCH.GRANITE,
    "hunyuan_v1_dense": gguf.MODEL_ARCH.HUNYUAN_DENSE,
    "ministral3": gguf.MODEL_ARCH.MISTRAL3,
    "olmo2": gguf.MODEL_ARCH.OLMO2,
    "olmo3": gguf.MODEL_ARCH.OLMO2,
    "seed_oss": gguf.MODEL_ARCH.SEED_OSS,
    "gpt_oss": gguf.MODEL_ARCH.GPT_OSS,
    "qwen3_moe": gguf.MODEL_ARCH.QWEN3MOE,
    "phi3": gguf.MODEL_ARCH.PHI3,
    "smollm3": gguf.MODEL_ARCH.SMOLLM3,
}
PERMUTED = (gguf.MODEL_ARCH.LLAMA, gguf.MODEL_ARCH.MISTRAL3, gguf.MODEL_ARCH.SMOLLM3, gguf.MODEL_ARCH.GRANITE)


def write_gguf(model: PreTrainedModel, path: Path, kind: Kind = Kind.F32, *, embedding_kind: Kind = Kind.F32) -> None:
    """kind  of the linears' weights; norms and biases stay F32"""
    config = model.config
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[ARCHITECTURES[config.model_type]])
    _write_metadata(writer, model)
    names = gguf.get_tensor_name_map(ARCHITECTURES[config.model_type], config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, tensor in (part for each in model.state_dict().items() for part in _apart(*each, model)):
        if tied and name == "lm_head.weight":
            continue
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        assert stored is not None, name
        values = _as_llama_cpp_stores(name, tensor, model)
        is_small = values.ndim == 1 or name.endswith(("bias", "gate.weight", "router.weight"))
        this_kind = Kind.F32 if is_small else embedding_kind if "embed" in name else kind
        writer.add_tensor(stored, gguf.quantize(values, this_kind), raw_dtype=this_kind)
    if config.rope_parameters.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_divisors(config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _write_metadata(writer: gguf.GGUFWriter, model: PreTrainedModel) -> None:
    config = model.config
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters
    rope = rope.get("full_attention", rope)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if rope["rope_type"] in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(rope["rope_type"]))
        writer.add_rope_scaling_factor(rope["factor"])
        if rope["rope_type"] == "yarn":
            writer.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
    if config.model_type == "granite":
        writer.add_embedding_scale(config.embedding_multiplier)
        writer.add_residual_scale(config.residual_multiplier)
        writer.add_attention_scale(config.attention_multiplier)
        writer.add_logit_scale(config.logits_scaling)
    if config.model_type == "ministral3":
        writer.add_attn_temperature_scale(rope["llama_4_scaling_beta"])
    if rope["rope_type"] == "longrope":
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
        for name in ("long", "short"):
            writer.add_tensor(f"rope_factors_{name}.weight", np.array(rope[f"{name}_factor"], dtype=np.float32))
    if config.model_type == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if experts := getattr(config, "num_local_experts", 0):
        writer.add_expert_count(experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
        writer.add_expert_feed_forward_length(getattr(config, "moe_intermediate_size", config.intermediate_size))
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_eot_token_id(5)
    writer.add_token_list([f"<{index}>" for index in range(config.vocab_size)])


def _apart(name: str, tensor: torch.Tensor, model: PreTrainedModel) -> Iterator[tuple[str, torch.Tensor]]:
    """Gate and up of stacked experts by themselves, weights as rows; other tensors as they are."""
    prefix, _, part = name.partition(".experts.")
    kind = "bias" if part.endswith("_bias") else "weight"
    if not part:
        yield (f"{name}.weight" if name.endswith("sinks") else name), tensor
        return
    takes_turns = model.config.model_type == "gpt_oss"
    if takes_turns and kind == "weight":
        tensor = tensor.mT
    if part.startswith("down_proj"):
        yield f"{prefix}.experts.down_proj.{kind}", tensor
        return
    gate, up = (tensor[:, ::2], tensor[:, 1::2]) if takes_turns else tensor.chunk(2, dim=1)
    yield f"{prefix}.experts.gate_proj.{kind}", gate
    yield f"{prefix}.experts.up_proj.{kind}", up


def _as_llama_cpp_stores(name: str, tensor: torch.Tensor, model: PreTrainedModel) -> np.ndarray:
    config = model.config
    if config.model_type.startswith("gemma") and name.endswith("norm.weight"):
        tensor = tensor + 1
    if ARCHITECTURES[config.model_type] in PERMUTED and ("q_proj" in name or "k_proj" in name):
        heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
        half = tensor.shape[0] // heads // 2
        # Rows of a head: dimension i and i + half become neighbours.
        tensor = tensor.reshape(heads, 2, half, *tensor.shape[1:]).transpose(1, 2).reshape(tensor.shape)
    return np.ascontiguousarray(tensor.float().numpy())


def _llama3_divisors(config: object) -> np.ndarray:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, "cpu")
    dim = 2 * scaled.shape[0]
    plain = 1.0 / config.rope_parameters["rope_theta"] ** (torch.arange(0, dim, 2).float() / dim)  # type: ignore[attr-defined]
    return (plain / scaled).numpy().astype(np.float32)

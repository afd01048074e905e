"""Two-layer random models of every family, as transformers builds them."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from streamserve.checkpoint.names import resolve
from streamserve.models.architectures.base import CausalModel
from streamserve.models.registry import read_arch
from streamserve.models.weights.loader import load_model

TOLERANCE = 1e-4
"""How far logits in fp32 may be from transformers'."""

SHAPE: dict[str, Any] = {
    "vocab_size": 199,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

THETA = {"rope_type": "default", "rope_theta": 10000.0}
GRANITE = {
    "embedding_multiplier": 12.0,
    "attention_multiplier": 0.2,
    "residual_multiplier": 0.22,
    "logits_scaling": 8.0,
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 32}
OLMO3 = {
    "sliding_window": 20,
    "layer_types": ["sliding_attention", "full_attention"],
    "rope_parameters": {"full_attention": YARN, "sliding_attention": THETA},
}
MINISTRAL3 = {"head_dim": 32, "rope_parameters": YARN | {"llama_4_scaling_beta": 0.3, "original_max_position_embeddings": 16}}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.75,
    "short_factor": [1.0 + 0.1 * pair for pair in range(6)],
    "long_factor": [2.0 + pair for pair in range(6)],
}
PHI3_LONG = {"rope_parameters": LONGROPE, "original_max_position_embeddings": 32}
GEMMA2 = {
    "head_dim": 32,
    "sliding_window": 20,
    "query_pre_attn_scalar": 32,
    "attn_logit_softcapping": 5.0,
    "final_logit_softcapping": 3.0,
}
OPT_SHAPE = {
    "vocab_size": 199,
    "hidden_size": 96,
    "ffn_dim": 160,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "max_position_embeddings": 128,
    "word_embed_proj_dim": 96,
}

GLM4_MOE = {
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "moe_intermediate_size": 48,
    "routed_scaling_factor": 1.5,
    "use_qk_norm": True,
    "attention_bias": True,
    "head_dim": 32,
}
GPT_OSS = {
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "head_dim": 32,
    "sliding_window": 20,
    "rope_parameters": YARN | {"rope_theta": 150000.0},
}
EXPERTS = {"num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 48}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SHAPE),
    "llama-tied": ("Llama", SHAPE | {"tie_word_embeddings": True}),
    "llama-biased": ("Llama", SHAPE | {"attention_bias": True, "mlp_bias": True}),
    "llama-wide-heads": ("Llama", SHAPE | {"head_dim": 32}),
    "mistral": ("Mistral", SHAPE | {"sliding_window": 20}),
    "mistral-unwindowed": ("Mistral", SHAPE | {"sliding_window": None}),
    "qwen2": ("Qwen2", SHAPE),
    "qwen2-windowed": ("Qwen2", SHAPE | {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1}),
    "qwen3": ("Qwen3", SHAPE | {"head_dim": 32}),
    "phi3": ("Phi3", SHAPE | {"sliding_window": 20}),
    "phi3-partial": ("Phi3", SHAPE | {"rope_parameters": THETA | {"partial_rotary_factor": 0.5}}),
    "smollm3": ("SmolLM3", SHAPE | {"no_rope_layer_interval": 2}),
    "smollm3-windowed": ("SmolLM3", SHAPE | {"no_rope_layers": [0, 1], "use_sliding_window": True, "sliding_window": 20}),
    "mixtral": ("Mixtral", SHAPE | {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 20}),
    "qwen2-moe": ("Qwen2Moe", SHAPE | EXPERTS | {"shared_expert_intermediate_size": 64}),
    "qwen3-moe": ("Qwen3Moe", SHAPE | EXPERTS | {"head_dim": 32, "norm_topk_prob": True}),
    "olmoe": ("Olmoe", SHAPE | {"num_experts": 8, "num_experts_per_tok": 3}),
    "granite-moe": ("GraniteMoe", SHAPE | GRANITE | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    "glm4-moe": ("Glm4Moe", SHAPE | GLM4_MOE),
    "gpt-oss": ("GptOss", SHAPE | GPT_OSS),
    "qwen3-moe-dense-first": ("Qwen3Moe", SHAPE | EXPERTS | {"head_dim": 32, "mlp_only_layers": [0]}),
    "gemma3": (
        "Gemma3",
        SHAPE | {"head_dim": 32, "sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "granite": ("Granite", SHAPE | GRANITE),
    "olmo2": ("Olmo2", SHAPE),
    "olmo3": ("Olmo3", SHAPE | OLMO3),
    "glm": ("Glm", SHAPE | {"head_dim": 32}),
    "glm4": ("Glm4", SHAPE | {"head_dim": 32}),
    "ernie": ("Ernie4_5", SHAPE | {"head_dim": 32}),
    "hunyuan": ("HunYuanDenseV1", SHAPE | {"head_dim": 32}),
    "seed-oss": ("SeedOss", SHAPE | {"head_dim": 32, "attention_dropout": 0.0, "residual_dropout": 0.0}),
    "ministral3": ("Ministral3", SHAPE | MINISTRAL3),
    "phi3-long": ("Phi3", SHAPE | PHI3_LONG),
    "gemma": ("Gemma", SHAPE | {"head_dim": 32}),
    "gemma2": ("Gemma2", SHAPE | GEMMA2),
    "opt": ("OPT", OPT_SHAPE),
    "opt-350m": ("OPT", OPT_SHAPE | {"word_embed_proj_dim": 48, "do_layer_norm_before": False}),
    "opt-unbiased": ("OPT", OPT_SHAPE | {"enable_bias": False}),
}

ROPES: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
    "yarn": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
    "yarn-tuned": {
        "rope_type": "yarn",
        "factor": 8.0,
        "original_max_position_embeddings": 32,
        "beta_fast": 16.0,
        "beta_slow": 2.0,
        "mscale": 1.5,
        "mscale_all_dim": 0.75,
    },
    "yarn-untruncated": {
        "rope_type": "yarn",
        "factor": 4.0,
        "original_max_position_embeddings": 32,
        "attention_factor": 1.3,
        "truncate": False,
    },
}


def prompt_of(length: int, seed: int = 0) -> list[int]:
    """Random token ids, special ones left out."""
    return random.Random(seed).choices(range(3, SHAPE["vocab_size"]), k=length)


def config_class(prefix: str) -> Any:
    """transformers' class for the configuration of a language model."""
    return getattr(transformers, f"{'Gemma3Text' if prefix == 'Gemma3' else prefix}Config")


def reference_model(prefix: str, settings: dict[str, Any]) -> PreTrainedModel:
    """A random fp32 model; every parameter is random, so that a misplaced bias or norm shows."""
    config = config_class(prefix)(**settings)
    return randomized(lambda: getattr(transformers, f"{prefix}ForCausalLM")(config))


def randomized(make: Callable[[], PreTrainedModel]) -> PreTrainedModel:
    """A model whose parameters are random and large enough to matter."""
    torch.manual_seed(0)
    model = make().eval()
    with torch.no_grad():
        balances = [buffer for name, buffer in model.named_buffers() if name.endswith("correction_bias")]
        for parameter in (*model.parameters(), *balances):
            if parameter.dim() == 1 or not parameter.any():
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.mul_(4.0)
    return model


def load(folder: Path, *, max_model_len: int | None = None) -> CausalModel:
    """Our model of a saved one, in fp32 on the CPU."""
    checkpoint = resolve(str(folder))
    arch = read_arch(checkpoint.config)
    return load_model(checkpoint, arch, dtype=torch.float32, device="cpu", max_model_len=max_model_len)

"""Random models of two or three layers, of classes that transformers' own layers run, and of some that they can't."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

from tests.models.families import SHAPE

WINDOW = 20
WINDOWED = {"sliding_window": WINDOW, "num_hidden_layers": 3}
ALTERNATING = WINDOWED | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
EXPERTS: dict[str, Any] = {"moe_intermediate_size": 32, "num_experts": 8, "num_experts_per_tok": 2}
LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 32,
    "v_head_dim": 24,
    "num_key_value_heads": 6,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
    "num_hidden_layers": 3,
}
LEARNED_POSITIONS = {"vocab_size": 199, "n_embd": 96, "n_layer": 2, "n_head": 6, "n_positions": 256, "eos_token_id": 2}

RUNS: dict[str, dict[str, Any]] = {
    "AfmoeForCausalLM": EXPERTS
    | {"num_dense_layers": 1, "head_dim": 16, "num_shared_experts": 1, "global_attn_every_n_layers": 2},
    "ApertusForCausalLM": {},
    "ArceeForCausalLM": {},
    "BitNetForCausalLM": {},
    "CohereForCausalLM": {"use_qk_norm": True},
    "Cohere2ForCausalLM": ALTERNATING,
    "DeepseekV2ForCausalLM": LATENT | {"first_k_dense_replace": 1, "topk_method": "greedy"},
    "DeepseekV3ForCausalLM": LATENT,
    "Ernie4_5ForCausalLM": {},
    "Ernie4_5_MoeForCausalLM": {
        "moe_num_experts": 8,
        "moe_k": 2,
        "moe_intermediate_size": 32,
        "moe_num_shared_experts": 1,
        "moe_layer_start_index": 1,
    },
    "Exaone4ForCausalLM": ALTERNATING,
    "FlexOlmoForCausalLM": EXPERTS | {"intermediate_size": 48},
    "GPT2LMHeadModel": LEARNED_POSITIONS,
    "GPTNeoXForCausalLM": {"rotary_pct": 0.5},
    "GemmaForCausalLM": {"head_dim": 32},
    "Gemma2ForCausalLM": ALTERNATING | {"head_dim": 32, "attn_logit_softcapping": 3.0, "final_logit_softcapping": 5.0},
    "GlmForCausalLM": {"head_dim": 16},
    "Glm4ForCausalLM": {"head_dim": 16},
    "Glm4MoeForCausalLM": {
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 32,
        "head_dim": 16,
        "use_qk_norm": True,
    },
    "GptOssForCausalLM": WINDOWED | {"num_local_experts": 8, "num_experts_per_tok": 2, "head_dim": 16},
    "GraniteForCausalLM": {"logits_scaling": 3.0, "attention_multiplier": 0.2, "residual_multiplier": 0.7},
    "GraniteMoeForCausalLM": {"num_local_experts": 8, "num_experts_per_tok": 2, "attention_multiplier": 0.2},
    "HeliumForCausalLM": {"head_dim": 16},
    "HunYuanDenseV1ForCausalLM": {"head_dim": 16},
    "LlamaForCausalLM": {},
    "MiniCPM3ForCausalLM": {
        "kv_lora_rank": 32,
        "q_lora_rank": 48,
        "qk_rope_head_dim": 16,
        "qk_nope_head_dim": 16,
        "v_head_dim": 16,
        "num_key_value_heads": 6,
    },
    "MistralForCausalLM": WINDOWED,
    "MixtralForCausalLM": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "NemotronForCausalLM": {"head_dim": 16},
    "OlmoForCausalLM": {},
    "Olmo2ForCausalLM": {},
    "Olmo3ForCausalLM": ALTERNATING,
    "OlmoeForCausalLM": {"num_experts": 8, "num_experts_per_tok": 2},
    "PersimmonForCausalLM": {},
    "PhiForCausalLM": {"partial_rotary_factor": 0.5},
    "Phi3ForCausalLM": WINDOWED,
    "PhimoeForCausalLM": {"num_local_experts": 8, "num_experts_per_tok": 2},
    "Qwen2MoeForCausalLM": EXPERTS | {"shared_expert_intermediate_size": 32},
    "Qwen3ForCausalLM": {"head_dim": 32},
    "Qwen3MoeForCausalLM": EXPERTS | {"head_dim": 16},
    "SeedOssForCausalLM": {"head_dim": 16},
    "SmolLM3ForCausalLM": {"no_rope_layer_interval": 2},
    "StableLmForCausalLM": {},
    "Starcoder2ForCausalLM": {},
    "VaultGemmaForCausalLM": ALTERNATING | {"head_dim": 32},
}
"""Classes, and what their configurations have beside `SHAPE`."""

SMALL: dict[str, Any] = {"n_layer": 2, "n_layers": 2, "d_model": 96}
REFUSED: dict[str, dict[str, Any]] = {
    "BloomForCausalLM": SMALL,
    "DiffLlamaForCausalLM": {},
    "DogeForCausalLM": {},
    "FalconForCausalLM": {},
    "GPTNeoForCausalLM": {"num_layers": 2, "attention_types": [[["global"], 2]]},
    "JambaForCausalLM": {},
    "JetMoeForCausalLM": {},
    "Lfm2ForCausalLM": {"layer_types": ["conv", "full_attention"]},
    "Llama4ForCausalLM": {"head_dim": 16},
    "MambaForCausalLM": {},
    "MptForCausalLM": SMALL,
    "Qwen3NextForCausalLM": {},
    "RobertaForCausalLM": {},
    "RwkvForCausalLM": {},
    "XGLMForCausalLM": {},
}
"""Classes that keep other state than keys and values, or attend in a way that is theirs alone."""


def config_of(name: str) -> dict[str, Any]:
    """The config.json of a class in `RUNS` or `REFUSED`."""
    changes = RUNS[name] if name in RUNS else REFUSED[name]
    shape = {} if "n_embd" in changes else SHAPE
    return shape | {"tie_word_embeddings": False, "architectures": [name]} | changes


def random_model(name: str, **changes: Any) -> PreTrainedModel:
    """A random fp32 model of a class in `RUNS`; every parameter is random, so that a misplaced bias or norm shows."""
    model_class = getattr(transformers, name)
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**config_of(name) | changes)).eval()
    # Other implementations leave out what they can't do: soft caps.
    model.set_attn_implementation("eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
            else:
                parameter.normal_(std=2 / parameter.shape[-1] ** 0.5)
    return model

"""GLM-4 of 2024 and of 2025, by their config.json: neighbouring dimensions of half of each head rotate together."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamserve.models.arch import BlockNorms, ModelArch
from streamserve.models.config_reading import interleaved, read_common

AROUND = BlockNorms("input_layernorm", "post_self_attn_layernorm", "post_attention_layernorm", "post_mlp_layernorm")


def read_glm(config: dict[str, Any]) -> ModelArch:
    config = {"head_dim": 128, "partial_rotary_factor": 0.5, "attention_bias": True, "rms_norm_eps": 1.5625e-7} | config
    return interleaved(ModelArch(**read_common(config), qkv_bias=bool(config["attention_bias"]), fused_gate_up=True))


def read_glm4(config: dict[str, Any]) -> ModelArch:
    return replace(read_glm(config), norms=AROUND)

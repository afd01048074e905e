"""Gemma 1, 2 and 3 (text), by their config.json: scaled embeddings, norms stored less one; windowed layers since 2."""

from __future__ import annotations

from typing import Any

import torch

from streamserve.checkpoint.config_values import need, positive
from streamserve.errors import ModelNotSupported
from streamserve.models.arch import BlockNorms, ModelArch, QkNorm
from streamserve.models.architectures.decoder import Decoder
from streamserve.models.config_reading import layer_windows, read_common
from streamserve.models.rope import Rope, read_rope
from streamserve.models.weights.placement import Placement

AROUND = BlockNorms("input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm", "post_feedforward_layernorm")

PATTERN_2 = 2
PATTERN_3 = 6
"""Every so many layers one sees everything, the others a window."""

HEAD_DIM = 256
GELU = "gelu_pytorch_tanh"
LOCAL_THETA = 10_000.0
GLOBAL_THETA = 1_000_000.0


class Gemma(Decoder):
    """A decoder whose embeddings are scaled by a number of the model's dtype."""

    def __init__(self, arch: ModelArch, place: Placement, max_positions: int) -> None:
        super().__init__(arch, place, max_positions)
        # Rounded, as it was in training.
        self.embedding.scale = float(torch.tensor(arch.embedding_scale, dtype=place.dtype))


def read_gemma(config: dict[str, Any]) -> ModelArch:
    return ModelArch(**_common(config))


def read_gemma2(config: dict[str, Any]) -> ModelArch:
    config = {"sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0} | config
    windows = layer_windows(config, _types(config, PATTERN_2))
    return ModelArch(**_common(config) | _capped(config) | {"windows": windows, "norms": AROUND})


def read_gemma3(config: dict[str, Any]) -> ModelArch:
    config = {"sliding_window": 4096} | config
    types = _types(config, config.get("sliding_window_pattern") or PATTERN_3)
    windows = layer_windows(config, types)
    everywhere, local = _ropes(config, positive({"head_dim": HEAD_DIM} | config, "head_dim"))
    return ModelArch(
        **_common(config)
        | _capped(config)
        | {
            # States the length that RoPE scaling reaches already.
            "max_model_len": need(config, "max_position_embeddings"),
            "windows": windows,
            "ropes": tuple(local if kind == "sliding_attention" else everywhere for kind in config.get("layer_types") or types),
            "norms": AROUND,
            "qk_norm": QkNorm(),
        }
    )


def _common(config: dict[str, Any]) -> dict[str, Any]:
    if config.get("use_bidirectional_attention"):
        raise ModelNotSupported("a Gemma with bidirectional attention (an embedding model) is not supported")
    # The first releases say "gelu" and mean its tanh approximation.
    activation = config.get("hidden_activation") or GELU
    config = {"tie_word_embeddings": True, "head_dim": HEAD_DIM} | config | {"hidden_act": activation}
    bias = bool(config.get("attention_bias", False))
    return read_common(config) | {
        "embedding_scale": config["hidden_size"] ** 0.5,
        "norm_offset": 1.0,
        "qkv_bias": bias,
        "output_bias": bias,
    }


def _capped(config: dict[str, Any]) -> dict[str, Any]:
    return {
        "attention_scale": positive(config, "query_pre_attn_scalar", 256) ** -0.5,
        "softcap": config.get("attn_logit_softcapping"),
        "logit_softcap": config.get("final_logit_softcapping"),
    }


def _types(config: dict[str, Any], pattern: int) -> list[str]:
    layers = range(1, need(config, "num_hidden_layers") + 1)
    return ["sliding_attention" if layer % pattern else "full_attention" for layer in layers]


def _ropes(config: dict[str, Any], head_dim: int) -> tuple[Rope, Rope]:
    """The rotations of full and of windowed layers."""
    everywhere = read_rope({"rope_theta": GLOBAL_THETA, **config}, head_dim, "full_attention")
    if "sliding_attention" in (config.get("rope_parameters") or {}):
        # What is scaled is what the full layers see.
        local = {**config, "rope_theta": LOCAL_THETA, "rope_scaling": None}
        return everywhere, read_rope(local, head_dim, "sliding_attention")
    theta = config.get("rope_local_base_freq", LOCAL_THETA)
    return everywhere, read_rope(
        {"rope_theta": theta, "max_position_embeddings": config.get("max_position_embeddings", 0)}, head_dim
    )

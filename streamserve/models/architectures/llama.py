"""Llama and its near relatives, by their config.json."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamserve.checkpoint.config_values import need, number, positive
from streamserve.errors import ConfigError
from streamserve.models.arch import ModelArch, QkNorm
from streamserve.models.config_reading import interleaved, one_window, optional_windows, read_common
from streamserve.models.rope import rope_parameters
from streamserve_kernels import QueryScaling

MINISTRAL3_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 1_000_000.0,
    "factor": 16.0,
    "original_max_position_embeddings": 16384,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.1,
}


def read_llama(config: dict[str, Any]) -> ModelArch:
    bias = bool(config.get("attention_bias", False))
    return ModelArch(**read_common(config), qkv_bias=bias, output_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))


def read_granite(config: dict[str, Any]) -> ModelArch:
    """A Llama with four multipliers (https://huggingface.co/docs/transformers/model_doc/granite).

    What blocks add to the hidden state is multiplied by `residual_multiplier`. Here the hidden state is kept divided by it, so
    that blocks add what they compute: RMS norms give the same, with eps divided twice, and so does the head behind one.
    """
    residual = positive(config, "residual_multiplier", 1.0)
    llama = read_llama(config)
    return replace(
        llama,
        attention_scale=number(config, "attention_multiplier", 1.0),
        embedding_scale=number(config, "embedding_multiplier", 1.0) / residual,
        logit_scale=1 / positive(config, "logits_scaling", 1.0),
        norm_eps=llama.norm_eps / residual**2,
    )


def read_seed_oss(config: dict[str, Any]) -> ModelArch:
    config = {"head_dim": 128, "attention_bias": True} | config
    return replace(read_llama(config), output_bias=bool(config.get("attention_out_bias", False)))


def read_ernie(config: dict[str, Any]) -> ModelArch:
    """ERNIE 4.5, dense: neighbouring dimensions rotate together."""
    bias = bool(config.get("use_bias", False))
    defaults = {"head_dim": 128, "rope_theta": 500_000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": True}
    config = defaults | config | {"attention_bias": bias, "mlp_bias": bias}
    return interleaved(read_llama(config))


def read_hunyuan(config: dict[str, Any]) -> ModelArch:
    """HunYuan, dense: heads are normed after they are rotated."""
    config = {"rms_norm_eps": 1e-5} | config
    return replace(read_llama(config), qk_norm=QkNorm(rotated=True, q="query_layernorm", k="key_layernorm"), mlp_bias=False)


def read_mistral(config: dict[str, Any]) -> ModelArch:
    # Only null, which later releases state, means that there is no window.
    config = {"sliding_window": 4096} | config
    return ModelArch(**read_common(config) | one_window(config))


def read_ministral3(config: dict[str, Any]) -> ModelArch:
    """A Mistral whose queries grow with their position."""
    config = {"head_dim": 128, "rms_norm_eps": 1e-5, "sliding_window": None} | config
    parameters = rope_parameters({"rope_parameters": MINISTRAL3_ROPE} | config)
    beta = number(parameters, "llama_4_scaling_beta", 0.0)
    scaling = QueryScaling(float(beta), need(parameters, "original_max_position_embeddings")) if beta else None
    config = config | {"rope_parameters": parameters, "rope_scaling": None}
    # States the length that RoPE scaling reaches already.
    return replace(read_mistral(config), query_scaling=scaling, max_model_len=need(config, "max_position_embeddings"))


def read_mistral3(config: dict[str, Any]) -> ModelArch:
    """The text part of Mistral 3, a Mistral or a Ministral 3."""
    if config.get("model_type") == "ministral3":
        return read_ministral3(config)
    return read_mistral({"head_dim": 128, "sliding_window": None, "tie_word_embeddings": True} | config)


def read_phi3(config: dict[str, Any]) -> ModelArch:
    config = {"rms_norm_eps": 1e-5, "original_max_position_embeddings": 4096} | config
    return ModelArch(**read_common(config) | one_window(config), fused_qkv=True, fused_gate_up=True)


def read_smollm3(config: dict[str, Any]) -> ModelArch:
    """A Llama of which some layers rotate nothing and may be windowed (Yang et al., 2025, https://arxiv.org/abs/2501.18795).

    Raises `ConfigError` where `no_rope_layers` has not an entry for each layer.
    """
    config = {"rope_theta": 2_000_000.0, "tie_word_embeddings": True} | config
    llama = read_llama(config)
    interval = positive(config, "no_rope_layer_interval", 4)
    # Against its name, it lists the layers that rotate.
    rotates = config.get("no_rope_layers") or [(layer + 1) % interval for layer in range(llama.num_layers)]
    if len(rotates) != llama.num_layers:
        raise ConfigError(f"config.json: no_rope_layers must have an entry for each of {llama.num_layers} layers")
    return replace(
        llama,
        ropes=tuple(rope if rotated else None for rope, rotated in zip(llama.ropes, rotates, strict=True)),
        windows=optional_windows(config, ["full_attention" if rotated else "sliding_attention" for rotated in rotates]),
    )

"""Qwen 2, 2.5 and 3, by their config.json."""

from __future__ import annotations

from typing import Any

from streamserve.checkpoint.config_values import number
from streamserve.models.arch import ModelArch, QkNorm
from streamserve.models.config_reading import optional_windows, read_common


def read_qwen2(config: dict[str, Any]) -> ModelArch:
    return ModelArch(**read_common(config) | _qwen_windows(config), qkv_bias=True)


def read_qwen3(config: dict[str, Any]) -> ModelArch:
    bias = bool(config.get("attention_bias", False))
    # Qwen3's class default is 128, whatever hidden_size / num_attention_heads says.
    config = {"head_dim": 128} | config
    return ModelArch(**read_common(config) | _qwen_windows(config), qkv_bias=bias, output_bias=bias, qk_norm=QkNorm())


def read_qwen2_5_vl(config: dict[str, Any]) -> ModelArch:
    """The text part. Its rotation is by three positions, which are equal for every token of a text."""
    return read_qwen2({"rope_theta": 1_000_000.0, "rms_norm_eps": 1e-5, "max_window_layers": 80} | config)


def read_qwen3_vl(config: dict[str, Any]) -> ModelArch:
    """The text part. Its rotation is by three positions, which are equal for every token of a text."""
    return read_qwen3({"rope_theta": 500_000.0} | config | {"use_sliding_window": False})


def _qwen_windows(config: dict[str, Any]) -> dict[str, Any]:
    layers, first = config["num_hidden_layers"], number(config, "max_window_layers", 28)
    types = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    return {"windows": optional_windows(config, types)}

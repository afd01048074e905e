"""Gemma 3 (text): norms before and after each block, scaled embeddings, mostly windowed layers with a rotation of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from streamserve.checkpoint.config_values import need
from streamserve.errors import ModelNotSupported
from streamserve.models.arch import ModelArch, activation_of, layer_windows, read_common
from streamserve.models.architectures.base import Layer
from streamserve.models.architectures.decoder import Decoder
from streamserve.models.layers.attention import Attention, output_linear, qkv_linear
from streamserve.models.layers.mlp import GatedMlp
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.rope import Rope, read_rope
from streamserve.models.weights.placement import Placement

NORM_OFFSET = 1.0
"""Gemma stores its norm weights less one."""

PATTERN = 6
LOCAL_THETA = 10_000.0
GLOBAL_THETA = 1_000_000.0


class GemmaLayer(Layer):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(self, arch: ModelArch, layer: int, place: Placement) -> None:
        super().__init__()
        prefix = f"model.layers.{layer}."

        def norm(name: str) -> RmsNorm:
            return RmsNorm(prefix + name, arch.hidden_size, place, eps=arch.norm_eps, offset=NORM_OFFSET)

        self.input_norm = norm("input_layernorm")
        self.qkv = qkv_linear(arch, prefix + "self_attn.", place)
        self.attention = Attention(arch, layer, prefix + "self_attn.", place, norm_offset=NORM_OFFSET)
        self.output = output_linear(arch, prefix + "self_attn.", place)
        self.attention_norm = norm("post_attention_layernorm")
        self.mlp = GatedMlp(arch, prefix + "mlp.", place, norm("pre_feedforward_layernorm"))
        self.output_norm = norm("post_feedforward_layernorm")

    def before_attention(self, hidden: Tensor) -> Tensor:
        return self.qkv.after_norm(hidden, self.input_norm)

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = hidden + self.attention_norm(self.output(attended))
        normed: Tensor = self.output_norm(self.mlp(hidden))
        return hidden + normed


class Gemma(Decoder):
    """A decoder of these layers, whose embeddings are scaled."""

    def __init__(self, arch: ModelArch, place: Placement, max_positions: int) -> None:
        super().__init__(arch, place, max_positions, GemmaLayer, norm_offset=NORM_OFFSET)
        # The scale is rounded to the model's dtype, as it was in training.
        self.embedding.scale = float(torch.tensor(arch.embedding_scale, dtype=place.dtype))


def read_gemma3(config: dict[str, Any]) -> ModelArch:
    if config.get("use_bidirectional_attention"):
        raise ModelNotSupported("Gemma 3 with bidirectional attention (an embedding model) is not supported")
    activation = activation_of(config.get("hidden_activation", "gelu_pytorch_tanh"))
    config = {"tie_word_embeddings": True, "head_dim": 256, "sliding_window": 4096, **config}
    layers = need(config, "num_hidden_layers")
    pattern = config.get("sliding_window_pattern") or PATTERN
    types = ["sliding_attention" if (layer + 1) % pattern else "full_attention" for layer in range(layers)]
    windows = layer_windows(config, types)
    bias = bool(config.get("attention_bias", False))
    everywhere, local = _ropes(config)
    return ModelArch(
        **read_common(config)
        | {
            # States the length that RoPE scaling reaches already.
            "max_model_len": need(config, "max_position_embeddings"),
            "activation": activation,
            "windows": windows,
            "ropes": tuple(local if kind == "sliding_attention" else everywhere for kind in config.get("layer_types") or types),
            "attention_scale": config.get("query_pre_attn_scalar", 256) ** -0.5,
        },
        softcap=config.get("attn_logit_softcapping"),
        logit_softcap=config.get("final_logit_softcapping"),
        embedding_scale=config["hidden_size"] ** 0.5,
        qkv_bias=bias,
        output_bias=bias,
        qk_norm=True,
    )


def _ropes(config: dict[str, Any]) -> tuple[Rope, Rope]:
    """The rotations of full and of windowed layers."""
    head_dim = config["head_dim"]
    everywhere = read_rope({"rope_theta": GLOBAL_THETA, **config}, head_dim, "full_attention")
    if "sliding_attention" in (config.get("rope_parameters") or {}):
        # What is scaled is what the full layers see.
        local = {**config, "rope_theta": LOCAL_THETA, "rope_scaling": None}
        return everywhere, read_rope(local, head_dim, "sliding_attention")
    theta = config.get("rope_local_base_freq", LOCAL_THETA)
    return everywhere, read_rope(
        {"rope_theta": theta, "max_position_embeddings": config.get("max_position_embeddings", 0)}, head_dim
    )

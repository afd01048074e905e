"""Gemma 3 (text): norms before and after each block, scaled embeddings, mostly windowed layers with a rotation of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from streamserve.errors import ModelNotSupported
from streamserve.models.arch import ModelArch, activation_of, layer_windows, need, read_common
from streamserve.models.architectures.base import CausalModel
from streamserve.models.architectures.decoder import gate_up_parts, qkv_parts
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.attention import Attention
from streamserve.models.layers.head import TokenEmbedding
from streamserve.models.layers.linear import Linear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.rope import Rope, RopeTables, read_rope
from streamserve.models.weights.placement import Placement
from streamserve_kernels import linear, norm_gated_linear, norm_linear, rms_norm

NORM_OFFSET = 1.0
"""Gemma stores its norm weights less one."""

PATTERN = 6
LOCAL_THETA = 10_000.0
GLOBAL_THETA = 1_000_000.0


class GemmaLayer(nn.Module):
    """x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(self, arch: ModelArch, layer: int, place: Placement) -> None:
        super().__init__()
        hidden = arch.hidden_size
        prefix = f"model.layers.{layer}."
        self.eps = arch.norm_eps

        def norm(name: str) -> RmsNorm:
            return RmsNorm(prefix + name, hidden, place, offset=NORM_OFFSET)

        self.input_norm = norm("input_layernorm")
        self.qkv = Linear(prefix + "self_attn.", qkv_parts(arch), hidden, place, bias=arch.qkv_bias)
        self.attention = Attention(arch, layer, prefix + "self_attn.", place, norm_offset=NORM_OFFSET)
        q_size = arch.q_heads * arch.head_dim
        self.output = Linear(prefix + "self_attn.", {"o_proj": hidden}, q_size, place, bias=arch.output_bias)
        self.attention_norm = norm("post_attention_layernorm")
        self.mlp_norm = norm("pre_feedforward_layernorm")
        self.gate_up = Linear(prefix + "mlp.", gate_up_parts(arch), hidden, place)
        self.down = Linear(prefix + "mlp.", {"down_proj": hidden}, arch.intermediate_size, place)
        self.output_norm = norm("post_feedforward_layernorm")

    def forward(self, hidden: Tensor, inputs: StepInputs, cos_sin: Tensor | None, kv_cache: Tensor) -> Tensor:
        """hidden [tokens, hidden_size] -> the same shape"""
        qkv = norm_linear(hidden, self.input_norm.weight, self.eps, self.qkv.weight, self.qkv.bias)
        attended = self.attention(qkv, inputs, cos_sin, kv_cache)
        projected = linear(attended, self.output.weight, self.output.bias)
        hidden = hidden + rms_norm(projected, self.attention_norm.weight, self.eps)
        gated = norm_gated_linear(hidden, self.mlp_norm.weight, self.eps, self.gate_up.weight, "gelu_tanh")
        return hidden + rms_norm(linear(gated, self.down.weight), self.output_norm.weight, self.eps)


class Gemma(CausalModel):
    """Embedding, layers, final norm and head."""

    def __init__(self, arch: ModelArch, place: Placement, max_positions: int) -> None:
        super().__init__(arch)
        self.embedding = TokenEmbedding(arch, place, norm_offset=NORM_OFFSET)
        # The scale is rounded to the model's dtype, as it was in training.
        self.embedding.scale = float(torch.tensor(arch.embedding_scale, dtype=place.dtype))
        self.layers = nn.ModuleList(GemmaLayer(arch, layer, place) for layer in range(arch.num_layers))
        self.ropes = RopeTables(arch.ropes, max_positions, place.device)

    def forward(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        hidden: Tensor = self.embedding(inputs.token_ids)
        for layer, cos_sin, kv_cache in zip(self.layers, self.ropes.by_layer, kv_caches, strict=True):
            hidden = layer(hidden, inputs, cos_sin, kv_cache)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.embedding.logits(hidden)


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
        return everywhere, read_rope({**config, "rope_theta": LOCAL_THETA}, head_dim, "sliding_attention")
    theta = config.get("rope_local_base_freq", LOCAL_THETA)
    return everywhere, read_rope(
        {"rope_theta": theta, "max_position_embeddings": config.get("max_position_embeddings", 0)}, head_dim
    )

"""OPT: learned positions, layer norms and biases everywhere, an MLP without a gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.arch import ModelArch, activation_of, architecture_of, dtype_of, need, refuse_quantized
from streamserve.models.architectures.base import CausalModel
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.attention import Attention
from streamserve.models.layers.embedding import Embedding
from streamserve.models.layers.linear import Linear, TiedLinear
from streamserve.models.layers.norm import LayerNorm
from streamserve.models.weights.placement import Placement
from streamserve_kernels import layer_norm, linear, linear_residual

POSITION_OFFSET = 2
"""The position table begins with two rows that no token uses."""

NORM_EPS = 1e-5


@dataclass(frozen=True, kw_only=True)
class OptArch(ModelArch):
    """embedding_size  of a token's vector, projected to hidden_size where it differs (350M)
    norm_first         norms before the blocks (all but 350M) or after them
    final_norm         one more norm before the head
    """

    embedding_size: int
    norm_first: bool
    final_norm: bool


class OptLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)); the norm moves behind the sum where `norm_first` is false."""

    def __init__(self, arch: OptArch, layer: int, place: Placement) -> None:
        super().__init__()
        hidden, inner, bias = arch.hidden_size, arch.intermediate_size, arch.qkv_bias
        prefix = f"model.decoder.layers.{layer}."
        parts = {"q_proj": hidden, "k_proj": hidden, "v_proj": hidden}
        self.norm_first = arch.norm_first
        self.attention_norm = LayerNorm(prefix + "self_attn_layer_norm", hidden, place)
        self.qkv = Linear(prefix + "self_attn.", parts, hidden, place, bias=bias)
        self.attention = Attention(arch, layer, prefix + "self_attn.", place)
        self.output = Linear(prefix + "self_attn.", {"out_proj": hidden}, hidden, place, bias=bias)
        self.mlp_norm = LayerNorm(prefix + "final_layer_norm", hidden, place)
        self.up = Linear(prefix, {"fc1": inner}, hidden, place, bias=bias)
        self.down = Linear(prefix, {"fc2": hidden}, inner, place, bias=bias)

    def forward(self, hidden: Tensor, inputs: StepInputs, kv_cache: Tensor) -> Tensor:
        """hidden [tokens, hidden_size] -> the same shape"""
        normed = self._norm(hidden, self.attention_norm) if self.norm_first else hidden
        attended = self.attention(linear(normed, self.qkv.weight, self.qkv.bias), inputs, None, kv_cache)
        hidden = linear_residual(attended, self.output.weight, hidden, self.output.bias)
        if not self.norm_first:
            hidden = self._norm(hidden, self.attention_norm)
        normed = self._norm(hidden, self.mlp_norm) if self.norm_first else hidden
        inner = F.relu(linear(normed, self.up.weight, self.up.bias))
        hidden = linear_residual(inner, self.down.weight, hidden, self.down.bias)
        return hidden if self.norm_first else self._norm(hidden, self.mlp_norm)

    @staticmethod
    def _norm(hidden: Tensor, norm: LayerNorm) -> Tensor:
        return layer_norm(hidden, norm.weight, norm.bias, NORM_EPS)


class Opt(CausalModel):
    """Token and position embeddings, layers, final norm and the tied head."""

    def __init__(self, arch: OptArch, place: Placement, max_positions: int) -> None:
        """Raises `ConfigError` when more positions are asked for than the learned table has."""
        if max_positions > arch.max_model_len:
            raise ConfigError(
                f"--max-model-len {max_positions}: this model has learned {arch.max_model_len} positions and no more"
            )
        super().__init__(arch)
        prefix, hidden, size = "model.decoder.", arch.hidden_size, arch.embedding_size
        projected = size != hidden
        self.table = Embedding(prefix + "embed_tokens", arch.vocab_size, size, place)
        self.positions = Embedding(prefix + "embed_positions", arch.max_model_len + POSITION_OFFSET, hidden, place)
        self.project_in = Linear(prefix, {"project_in": hidden}, size, place) if projected else None
        self.project_out = Linear(prefix, {"project_out": size}, hidden, place) if projected else None
        self.layers = nn.ModuleList(OptLayer(arch, layer, place) for layer in range(arch.num_layers))
        self.norm = LayerNorm(prefix + "final_layer_norm", hidden, place) if arch.final_norm else None
        self.head = TiedLinear(self.table) if arch.tied_embeddings else Linear("", {"lm_head": arch.vocab_size}, size, place)

    def forward(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        hidden = F.embedding(inputs.token_ids, self.table.weight)
        if self.project_in is not None:
            hidden = linear(hidden, self.project_in.weight)
        hidden = hidden + F.embedding(inputs.positions + POSITION_OFFSET, self.positions.weight)
        for layer, kv_cache in zip(self.layers, kv_caches, strict=True):
            hidden = layer(hidden, inputs, kv_cache)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        if self.norm is not None:
            hidden = layer_norm(hidden, self.norm.weight, self.norm.bias, NORM_EPS)
        if self.project_out is not None:
            hidden = linear(hidden, self.project_out.weight)
        return linear(hidden, self.head.weight)


def read_opt(config: dict[str, Any]) -> OptArch:
    refuse_quantized(config)
    if not config.get("layer_norm_elementwise_affine", True):
        raise ModelNotSupported("OPT without layer norm weights (layer_norm_elementwise_affine false) is not supported")
    hidden, heads, layers = need(config, "hidden_size"), need(config, "num_attention_heads"), need(config, "num_hidden_layers")
    norm_first, bias = config.get("do_layer_norm_before", True), config.get("enable_bias", True)
    return OptArch(
        architecture=architecture_of(config),
        dtype=dtype_of(config),
        vocab_size=need(config, "vocab_size"),
        hidden_size=hidden,
        intermediate_size=need(config, "ffn_dim"),
        num_layers=layers,
        q_heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        max_model_len=need(config, "max_position_embeddings"),
        norm_eps=NORM_EPS,
        activation=activation_of(config.get("activation_function", "relu")),
        windows=(None,) * layers,
        ropes=(None,) * layers,
        attention_scale=(hidden // heads) ** -0.5,
        qkv_bias=bias,
        output_bias=bias,
        mlp_bias=bias,
        tied_embeddings=config.get("tie_word_embeddings", True),
        embedding_size=config.get("word_embed_proj_dim") or hidden,
        norm_first=norm_first,
        final_norm=norm_first and not config.get("_remove_final_layer_norm", False),
    )

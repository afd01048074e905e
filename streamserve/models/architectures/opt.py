"""OPT: learned positions, layer norms and biases everywhere, an MLP without a gate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from streamserve.checkpoint.config_values import need, positive
from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.arch import ModelArch
from streamserve.models.architectures.base import Layer, LayeredModel
from streamserve.models.config_reading import activation_of, architecture_of, dtype_of
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.attention import Attention, output_linear, qkv_linear
from streamserve.models.layers.embedding import Embedding, VocabularyEmbedding, head_of
from streamserve.models.layers.linear import Linear
from streamserve.models.layers.norm import LayerNorm
from streamserve.models.rope import RopeTables
from streamserve.models.weights.placement import Placement

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


class OptLayer(Layer):
    """x + attention(norm(x)), then x + mlp(norm(x)); the norm moves behind the sum where `norm_first` is false."""

    def __init__(self, arch: OptArch, layer: int, place: Placement) -> None:
        super().__init__()
        hidden, inner = arch.hidden_size, arch.intermediate_size
        prefix = f"model.decoder.layers.{layer}."
        self.norm_first = arch.norm_first
        self.attention_norm = LayerNorm(prefix + "self_attn_layer_norm", hidden, place, eps=arch.norm_eps)
        self.qkv = qkv_linear(arch, prefix + "self_attn.", place)
        self.attention = Attention(arch, layer, prefix + "self_attn.", place)
        self.output = output_linear(arch, prefix + "self_attn.", place, name="out_proj")
        self.mlp_norm = LayerNorm(prefix + "final_layer_norm", hidden, place, eps=arch.norm_eps)
        self.up = Linear(prefix, {"fc1": inner}, hidden, place, bias=arch.mlp_bias, divided="rows")
        self.down = Linear(prefix, {"fc2": hidden}, inner, place, bias=arch.mlp_bias, divided="columns")

    def before_attention(self, hidden: Tensor) -> Tensor:
        normed = self.attention_norm(hidden) if self.norm_first else hidden
        qkv: Tensor = self.qkv(normed)
        return qkv

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        hidden = self.output.onto(hidden, attended)
        if not self.norm_first:
            hidden = self.attention_norm(hidden)
        normed = self.mlp_norm(hidden) if self.norm_first else hidden
        hidden = self.down.onto(hidden, F.relu(self.up(normed)))
        if not self.norm_first:
            hidden = self.mlp_norm(hidden)
        return hidden


class Opt(LayeredModel):
    """Token and position embeddings, layers, final norm and the tied head."""

    def __init__(self, arch: OptArch, place: Placement, max_positions: int) -> None:
        """Raises `ConfigError` when more positions are requested than the learned table has."""
        if max_positions > arch.max_model_len:
            raise ConfigError(
                f"--max-model-len {max_positions}: this model has learned {arch.max_model_len} positions and no more"
            )
        layers = [OptLayer(arch, layer, place) for layer in range(arch.num_layers)]
        super().__init__(arch, layers, RopeTables(arch.ropes, max_positions, place.device))
        prefix, hidden, size = "model.decoder.", arch.hidden_size, arch.embedding_size
        projected = size != hidden
        self._state_size = size
        self.table = VocabularyEmbedding(prefix + "embed_tokens", arch.vocab_size, size, place, tied=arch.tied_embeddings)
        self.positions = Embedding(prefix + "embed_positions", arch.max_model_len + POSITION_OFFSET, hidden, place)
        self.project_in = Linear(prefix, {"project_in": hidden}, size, place) if projected else None
        self.project_out = Linear(prefix, {"project_out": size}, hidden, place) if projected else None
        self.norm = LayerNorm(prefix + "final_layer_norm", hidden, place, eps=arch.norm_eps) if arch.final_norm else None
        self.head = head_of(self.table, arch, place)

    def embed(self, inputs: StepInputs) -> Tensor:
        hidden: Tensor = self.table(inputs.token_ids)
        if self.project_in is not None:
            hidden = self.project_in(hidden)
        positions: Tensor = self.positions(inputs.positions + POSITION_OFFSET)
        return hidden + positions

    def states(self, hidden: Tensor) -> Tensor:
        if self.norm is not None:
            hidden = self.norm(hidden)
        return hidden if self.project_out is None else self.project_out(hidden)

    @property
    def state_size(self) -> int:
        return self._state_size

    def logits(self, hidden: Tensor) -> Tensor:
        logits: Tensor = self.head(self.states(hidden))
        return logits


def read_opt(config: dict[str, Any]) -> OptArch:
    if not config.get("layer_norm_elementwise_affine", True):
        raise ModelNotSupported("OPT without layer norm weights (layer_norm_elementwise_affine false) is not supported")
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    layers = positive(config, "num_hidden_layers")
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

"""RMS-norm decoders with a gated MLP: most families, which differ in their `ModelArch` only."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from streamserve.models.arch import ModelArch
from streamserve.models.architectures.base import Layer, LayeredModel
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.attention import Attention, all_heads_norm, output_linear, qkv_linear
from streamserve.models.layers.embedding import TokenEmbedding
from streamserve.models.layers.experts import mlp_of
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.rope import RopeTables
from streamserve.models.weights.placement import Placement


class DecoderLayer(Layer):
    """x + attention(norm(x)), then x + mlp(norm(x)); norms stand before a block, after it, or both (`arch.norms`)."""

    def __init__(self, arch: ModelArch, layer: int, place: Placement) -> None:
        super().__init__()
        prefix = f"model.layers.{layer}."

        def norm(name: str | None) -> RmsNorm | None:
            if name is None:
                return None
            return RmsNorm(prefix + name, arch.hidden_size, place, eps=arch.norm_eps, offset=arch.norm_offset)

        self.input_norm = norm(arch.norms.before_attention)
        self.qkv = qkv_linear(arch, prefix + "self_attn.", place)
        self.qk_norm = all_heads_norm(arch, prefix + "self_attn.", place)
        self.attention = Attention(arch, layer, prefix + "self_attn.", place)
        self.output = output_linear(arch, prefix + "self_attn.", place)
        self.attention_norm = norm(arch.norms.after_attention)
        self.mlp = mlp_of(arch, layer, prefix, place, norm(arch.norms.before_mlp))
        self.output_norm = norm(arch.norms.after_mlp)

    def before_attention(self, hidden: Tensor) -> Tensor:
        qkv = self.qkv.after_norm(hidden, self.input_norm)
        return qkv if self.qk_norm is None else self.qk_norm(qkv)

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        if self.attention_norm is None:
            hidden = self.output.onto(hidden, attended)
        else:
            hidden = self.attention_norm.onto(hidden, self.output(attended))
        if self.output_norm is None:
            return self.mlp.onto(hidden)
        return self.output_norm.onto(hidden, self.mlp(hidden))


class Decoder(LayeredModel):
    """Embedding, layers, final RMS norm and head."""

    def __init__(
        self,
        arch: ModelArch,
        place: Placement,
        max_positions: int,
        make_layer: Callable[[ModelArch, int, Placement], Layer] = DecoderLayer,
    ) -> None:
        """make_layer  called with each layer's number"""
        layers = [make_layer(arch, layer, place) for layer in range(arch.num_layers)]
        super().__init__(arch, layers, RopeTables(arch.ropes, max_positions, place.device))
        self.embedding = TokenEmbedding(arch, place)

    def embed(self, inputs: StepInputs) -> Tensor:
        embedded: Tensor = self.embedding(inputs.token_ids)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        return self.embedding.logits(hidden)

    def states(self, hidden: Tensor) -> Tensor:
        return self.embedding.states(hidden)

    @property
    def state_size(self) -> int:
        return self.arch.hidden_size

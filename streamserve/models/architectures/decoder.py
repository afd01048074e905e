"""Pre-norm RMS decoders with a gated MLP: Llama, Mistral, Qwen2, Qwen3 and Phi-3, which differ in their `ModelArch` only."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from streamserve.models.arch import ModelArch, layer_windows, read_common
from streamserve.models.architectures.base import CausalModel, Layer
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.attention import Attention, output_linear, qkv_linear
from streamserve.models.layers.embedding import TokenEmbedding
from streamserve.models.layers.mlp import GatedMlp
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.rope import RopeTables
from streamserve.models.weights.placement import Placement


class DecoderLayer(Layer):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, arch: ModelArch, layer: int, place: Placement) -> None:
        super().__init__()
        prefix = f"model.layers.{layer}."

        def norm(name: str) -> RmsNorm:
            return RmsNorm(prefix + name, arch.hidden_size, place, eps=arch.norm_eps)

        self.input_norm = norm("input_layernorm")
        self.qkv = qkv_linear(arch, prefix + "self_attn.", place)
        self.attention = Attention(arch, layer, prefix + "self_attn.", place)
        self.output = output_linear(arch, prefix + "self_attn.", place)
        self.mlp = GatedMlp(arch, prefix + "mlp.", place, norm("post_attention_layernorm"))

    def before_attention(self, hidden: Tensor) -> Tensor:
        return self.qkv.after_norm(hidden, self.input_norm)

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        return self.mlp.onto(self.output.onto(hidden, attended))


class Decoder(CausalModel):
    """Embedding, layers that rotate, final RMS norm and head."""

    def __init__(
        self,
        arch: ModelArch,
        place: Placement,
        max_positions: int,
        make_layer: Callable[[ModelArch, int, Placement], Layer] = DecoderLayer,
        *,
        norm_offset: float = 0.0,
    ) -> None:
        """make_layer   called with each layer's number
        norm_offset  of the final norm
        """
        layers = [make_layer(arch, layer, place) for layer in range(arch.num_layers)]
        super().__init__(arch, layers, RopeTables(arch.ropes, max_positions, place.device))
        self.embedding = TokenEmbedding(arch, place, norm_offset=norm_offset)

    def embed(self, inputs: StepInputs) -> Tensor:
        embedded: Tensor = self.embedding(inputs.token_ids)
        return embedded

    def logits(self, hidden: Tensor) -> Tensor:
        return self.embedding.logits(hidden)


def read_llama(config: dict[str, Any]) -> ModelArch:
    bias = bool(config.get("attention_bias", False))
    return ModelArch(**read_common(config), qkv_bias=bias, output_bias=bias, mlp_bias=bool(config.get("mlp_bias", False)))


def read_mistral(config: dict[str, Any]) -> ModelArch:
    return ModelArch(**read_common(config) | _one_window(config))


def read_qwen2(config: dict[str, Any]) -> ModelArch:
    return ModelArch(**read_common(config) | _qwen_windows(config), qkv_bias=True)


def read_qwen3(config: dict[str, Any]) -> ModelArch:
    bias = bool(config.get("attention_bias", False))
    # Qwen3's class default is 128, whatever hidden_size / num_attention_heads says.
    config = {"head_dim": 128} | config
    return ModelArch(**read_common(config) | _qwen_windows(config), qkv_bias=bias, output_bias=bias, qk_norm=True)


def read_phi3(config: dict[str, Any]) -> ModelArch:
    return ModelArch(**read_common(config) | _one_window(config), fused_in_checkpoint=True)


def _one_window(config: dict[str, Any]) -> dict[str, Any]:
    return {"windows": (config.get("sliding_window"),) * config["num_hidden_layers"]}


def _qwen_windows(config: dict[str, Any]) -> dict[str, Any]:
    layers = config["num_hidden_layers"]
    full = ["full_attention"] * layers
    if not config.get("use_sliding_window", False):
        return {"windows": layer_windows({}, full)}
    first = config.get("max_window_layers", 28)
    return {"windows": layer_windows(config, full[:first] + ["sliding_attention"] * max(0, layers - first))}

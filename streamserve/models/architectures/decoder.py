"""Pre-norm RMS decoders with a gated MLP: Llama, Mistral, Phi-3, Qwen and SmolLM3, which differ in their `ModelArch` only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from torch import Tensor

from streamserve.models.arch import ModelArch, layer_windows, read_common
from streamserve.models.architectures.base import Layer, LayeredModel
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.attention import Attention, output_linear, qkv_linear
from streamserve.models.layers.embedding import TokenEmbedding
from streamserve.models.layers.experts import mlp_of
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
        self.mlp = mlp_of(arch, layer, prefix, place, norm("post_attention_layernorm"))

    def before_attention(self, hidden: Tensor) -> Tensor:
        return self.qkv.after_norm(hidden, self.input_norm)

    def after_attention(self, hidden: Tensor, attended: Tensor) -> Tensor:
        return self.mlp.onto(self.output.onto(hidden, attended))


class Decoder(LayeredModel):
    """Embedding, layers, final RMS norm and head."""

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


def read_smollm3(config: dict[str, Any]) -> ModelArch:
    """A Llama of which some layers rotate nothing and may be windowed (Yang et al., 2025, https://arxiv.org/abs/2501.18795)."""
    config = {"rope_theta": 2_000_000.0, "tie_word_embeddings": True} | config
    llama = read_llama(config)
    interval = config.get("no_rope_layer_interval", 4)
    # Against its name, it lists the layers that rotate.
    rotates = config.get("no_rope_layers") or [(layer + 1) % interval for layer in range(llama.num_layers)]
    return replace(
        llama,
        ropes=tuple(rope if rotated else None for rope, rotated in zip(llama.ropes, rotates, strict=True)),
        windows=_optional_windows(config, ["full_attention" if rotated else "sliding_attention" for rotated in rotates]),
    )


def _one_window(config: dict[str, Any]) -> dict[str, Any]:
    return {"windows": (config.get("sliding_window"),) * config["num_hidden_layers"]}


def _qwen_windows(config: dict[str, Any]) -> dict[str, Any]:
    layers, first = config["num_hidden_layers"], config.get("max_window_layers", 28)
    types = ["full_attention" if layer < first else "sliding_attention" for layer in range(layers)]
    return {"windows": _optional_windows(config, types)}


def _optional_windows(config: dict[str, Any], default_types: list[str]) -> tuple[int | None, ...]:
    """`layer_windows`, where `use_sliding_window` asks for them."""
    if not config.get("use_sliding_window", False):
        return (None,) * len(default_types)
    return layer_windows(config, default_types)

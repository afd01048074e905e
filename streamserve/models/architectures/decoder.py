"""Pre-norm RMS decoders with a gated MLP: Llama, Mistral, Qwen2, Qwen3 and Phi-3, which differ in their `ModelArch` only."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from streamserve.errors import ModelNotSupported
from streamserve.models.arch import ModelArch, layer_windows, read_common
from streamserve.models.architectures.base import CausalModel
from streamserve.models.inputs import StepInputs
from streamserve.models.layers.attention import Attention
from streamserve.models.layers.head import TokenEmbedding
from streamserve.models.layers.linear import Linear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.rope import RopeTables
from streamserve.models.weights.placement import Placement
from streamserve_kernels import Activation, gelu_tanh_mul, linear_residual, norm_gated_linear, norm_linear, silu_mul


class DecoderLayer(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, arch: ModelArch, layer: int, place: Placement) -> None:
        super().__init__()
        hidden, inner = arch.hidden_size, arch.intermediate_size
        prefix = f"model.layers.{layer}."
        self.eps, self.activation = arch.norm_eps, gate_activation(arch)
        self.input_norm = RmsNorm(prefix + "input_layernorm", hidden, place)
        self.qkv = Linear(prefix + "self_attn.", qkv_parts(arch), hidden, place, bias=arch.qkv_bias)
        self.attention = Attention(arch, layer, prefix + "self_attn.", place)
        q_size = arch.q_heads * arch.head_dim
        self.output = Linear(prefix + "self_attn.", {"o_proj": hidden}, q_size, place, bias=arch.output_bias)
        self.mlp_norm = RmsNorm(prefix + "post_attention_layernorm", hidden, place)
        self.gate_up = Linear(prefix + "mlp.", gate_up_parts(arch), hidden, place, bias=arch.mlp_bias)
        self.down = Linear(prefix + "mlp.", {"down_proj": hidden}, inner, place, bias=arch.mlp_bias)

    def forward(self, hidden: Tensor, inputs: StepInputs, cos_sin: Tensor | None, kv_cache: Tensor) -> Tensor:
        """hidden [tokens, hidden_size] -> the same shape"""
        qkv = norm_linear(hidden, self.input_norm.weight, self.eps, self.qkv.weight, self.qkv.bias)
        attended = self.attention(qkv, inputs, cos_sin, kv_cache)
        hidden = linear_residual(attended, self.output.weight, hidden, self.output.bias)
        return linear_residual(self._gated(hidden), self.down.weight, hidden, self.down.bias)

    def _gated(self, hidden: Tensor) -> Tensor:
        if self.gate_up.bias is None:
            return norm_gated_linear(hidden, self.mlp_norm.weight, self.eps, self.gate_up.weight, self.activation)
        gate_up = norm_linear(hidden, self.mlp_norm.weight, self.eps, self.gate_up.weight, self.gate_up.bias)
        return silu_mul(gate_up) if self.activation == "silu" else gelu_tanh_mul(gate_up)


class Decoder(CausalModel):
    """Embedding, layers, final norm and head."""

    def __init__(self, arch: ModelArch, place: Placement, max_positions: int) -> None:
        super().__init__(arch)
        self.embedding = TokenEmbedding(arch, place)
        self.layers = nn.ModuleList(DecoderLayer(arch, layer, place) for layer in range(arch.num_layers))
        self.ropes = RopeTables(arch.ropes, max_positions, place.device)

    def forward(self, inputs: StepInputs, kv_caches: list[Tensor]) -> Tensor:
        hidden: Tensor = self.embedding(inputs.token_ids)
        for layer, cos_sin, kv_cache in zip(self.layers, self.ropes.by_layer, kv_caches, strict=True):
            hidden = layer(hidden, inputs, cos_sin, kv_cache)
        return hidden

    def logits(self, hidden: Tensor) -> Tensor:
        return self.embedding.logits(hidden)


def qkv_parts(arch: ModelArch) -> dict[str, int]:
    """The checkpoint's tensors that make up the query, key and value projection, with their rows."""
    q, kv = arch.q_heads * arch.head_dim, arch.kv_heads * arch.head_dim
    return {"qkv_proj": q + 2 * kv} if arch.fused_in_checkpoint else {"q_proj": q, "k_proj": kv, "v_proj": kv}


def gate_up_parts(arch: ModelArch) -> dict[str, int]:
    """The checkpoint's tensors that make up the gate and up projections, with their rows."""
    inner = arch.intermediate_size
    return {"gate_up_proj": 2 * inner} if arch.fused_in_checkpoint else {"gate_proj": inner, "up_proj": inner}


def gate_activation(arch: ModelArch) -> Activation:
    """The activation of a gated MLP. Raises `ModelNotSupported` for one that is not built into it."""
    if arch.activation == "relu":
        raise ModelNotSupported("a gated MLP with ReLU is not supported")
    return arch.activation


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

"""A model's shape: everything that its layers, its weights and its KV cache are built from, read from config.json.

Plain values; what differs between families is a field here or a room of its own beside this one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from streamserve.checkpoint.config_values import need, number
from streamserve.errors import ModelNotSupported
from streamserve.models.division import shared_heads
from streamserve.models.mixture import Mixture
from streamserve.models.rope import Rope, extended_length, read_rope

Activation = Literal["silu", "gelu_tanh", "relu"]

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


@dataclass(frozen=True)
class PagedKv:
    """What a layer keeps for a sequence: a key and a value of each of its tokens, in every KV head.

    window  how many tokens the newest one sees, itself included: older ones need not be kept; None keeps all
    """

    kv_heads: int
    head_dim: int
    window: int | None

    def among(self, world_size: int) -> PagedKv:
        """What each of so many ranks keeps of it. Raises `ConfigError` when the heads can't be divided among them."""
        return replace(self, kv_heads=len(shared_heads(self.kv_heads, 0, world_size)))


@dataclass(frozen=True, kw_only=True)
class Arch(ABC):
    """What an engine needs to know of any model, whoever wrote its layers.

    model_impl       whose layers these are: "streamserve" or "transformers"
    architecture     transformers' class name
    dtype            of the checkpoint: "bfloat16", "float16" or "float32"
    max_model_len    tokens of one sequence that the positions of this model reach
    tied_embeddings  the head is the embedding matrix, unless the checkpoint stores a head that differs from it
    """

    model_impl: ClassVar[str]
    architecture: str
    dtype: str
    vocab_size: int
    max_model_len: int
    tied_embeddings: bool = False

    @property
    @abstractmethod
    def layer_states(self) -> tuple[PagedKv, ...]:
        """What each layer keeps for a sequence."""


@dataclass(frozen=True, kw_only=True)
class ModelArch(Arch):
    """The shape of one decoder-only transformer.

    architecture      transformers' class name, the key of the registry
    dtype             of the checkpoint: "bfloat16", "float16" or "float32"
    max_model_len     tokens of one sequence that the positions of this model reach
    windows           per layer: how many tokens a token sees, itself included; None sees all
    ropes             per layer: its rotation; None where nothing is rotated
    attention_scale   factor of the attention scores
    softcap           of the attention scores, or None
    logit_softcap     of the logits, or None
    embedding_scale   factor of the embeddings
    qkv_bias, output_bias, mlp_bias  which linears have one
    qk_norm           RMS norm of every query and key head
    tied_embeddings   the head is the embedding matrix, unless the checkpoint stores a head that differs from it
    fused_in_checkpoint  q, k and v are stored as one tensor, and so are gate and up
    mixture           of experts, in the place of the MLP of some layers; None where all have one
    """

    model_impl = "streamserve"
    architecture: str
    dtype: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    q_heads: int
    kv_heads: int
    head_dim: int
    max_model_len: int
    norm_eps: float
    activation: Activation
    windows: tuple[int | None, ...]
    ropes: tuple[Rope | None, ...]
    attention_scale: float
    softcap: float | None = None
    logit_softcap: float | None = None
    embedding_scale: float = 1.0
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False

    fused_in_checkpoint: bool = False
    mixture: Mixture | None = None

    @property
    def layer_states(self) -> tuple[PagedKv, ...]:
        """What each layer keeps for a sequence."""
        return tuple(PagedKv(self.kv_heads, self.head_dim, window) for window in self.windows)


def read_common(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `ModelArch` that the RMS-norm families have in common, from config.json.

    Raises `ConfigError` naming what is missing or no number, and `ModelNotSupported` for values that are not built here.
    """
    hidden, heads = need(config, "hidden_size"), need(config, "num_attention_heads")
    head_dim = config.get("head_dim") or hidden // heads
    layers = need(config, "num_hidden_layers")
    rope = read_rope(config, head_dim)
    return {
        "architecture": architecture_of(config),
        "dtype": dtype_of(config),
        "vocab_size": need(config, "vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": need(config, "intermediate_size"),
        "num_layers": layers,
        "q_heads": heads,
        "kv_heads": config.get("num_key_value_heads") or heads,
        "head_dim": head_dim,
        "max_model_len": extended_length(config, rope),
        "norm_eps": number(config, "rms_norm_eps", 1e-6),
        "activation": activation_of(config.get("hidden_act", "silu")),
        "windows": (None,) * layers,
        "ropes": (rope,) * layers,
        "attention_scale": head_dim**-0.5,
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def layer_windows(config: dict[str, Any], default_types: list[str]) -> tuple[int | None, ...]:
    """Windows by `layer_types` ("sliding_attention" | "full_attention"), or by a family's own rule when the config has none."""
    types = config.get("layer_types") or default_types
    unknown = set(types) - {"sliding_attention", "full_attention"}
    if unknown:
        raise ModelNotSupported(
            f"layer type {sorted(unknown)[0]!r} is not supported; supported: full_attention, sliding_attention"
        )
    window = config.get("sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def architecture_of(config: dict[str, Any]) -> str:
    names = config.get("architectures") or [config.get("model_type", "unknown")]
    return str(names[0])


def dtype_of(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")


def activation_of(name: str) -> Activation:
    if name not in ACTIVATIONS:
        raise ModelNotSupported(f"activation {name!r} is not supported; supported: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]

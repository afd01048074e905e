"""What families' readers have in common: fields of a `ModelArch` from config.json, with transformers' defaults.

What is missing or no number is named, and so is a value that is not built here.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from streamserve.checkpoint.config_values import need, number, positive
from streamserve.errors import ModelNotSupported
from streamserve.models.arch import Activation, ModelArch
from streamserve.models.rope import extended_length, read_rope

ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


def read_common(config: dict[str, Any]) -> dict[str, Any]:
    """The fields of `ModelArch` that the RMS-norm families have in common, from config.json.

    Raises `ConfigError` naming what is missing or no number, and `ModelNotSupported` for values that are not built here.
    """
    hidden, heads = positive(config, "hidden_size"), positive(config, "num_attention_heads")
    head_dim = hidden // heads if config.get("head_dim") is None else positive(config, "head_dim")
    layers = positive(config, "num_hidden_layers")
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
        # For a longer context every token is rotated otherwise, those of short texts too.
        "default_model_len": rope.original_max_position_embeddings if rope.kind == "longrope" else None,
        "norm_eps": number(config, "rms_norm_eps", 1e-6),
        "activation": activation_of(config.get("hidden_act", "silu")),
        "windows": (None,) * layers,
        "ropes": (rope,) * layers,
        "attention_scale": head_dim**-0.5,
        "tied_embeddings": bool(config.get("tie_word_embeddings", False)),
    }


def layer_windows(config: dict[str, Any], default_types: list[str]) -> tuple[int | None, ...]:
    """Windows by `layer_types` ("sliding_attention" | "full_attention"), or by a family's own rule when the config has none.

    Raises `ModelNotSupported` for any other type.
    """
    types = config.get("layer_types") or default_types
    unknown = set(types) - {"sliding_attention", "full_attention"}
    if unknown:
        raise ModelNotSupported(
            f"layer type {sorted(unknown)[0]!r} is not supported; supported: full_attention, sliding_attention"
        )
    window = config.get("sliding_window")
    return tuple(window if kind == "sliding_attention" else None for kind in types)


def one_window(config: dict[str, Any]) -> dict[str, Any]:
    """The window of every layer."""
    return {"windows": (config.get("sliding_window"),) * config["num_hidden_layers"]}


def optional_windows(config: dict[str, Any], default_types: list[str]) -> tuple[int | None, ...]:
    """`layer_windows`, where `use_sliding_window` asks for them."""
    if not config.get("use_sliding_window", False):
        return (None,) * len(default_types)
    return layer_windows(config, default_types)


def interleaved(arch: ModelArch) -> ModelArch:
    """The same with neighbouring dimensions rotating together."""
    return replace(arch, ropes=tuple(rope and replace(rope, interleaved=True) for rope in arch.ropes))


def architecture_of(config: dict[str, Any]) -> str:
    names = config.get("architectures") or [config.get("model_type", "unknown")]
    return str(names[0])


def dtype_of(config: dict[str, Any]) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "float32").removeprefix("torch.")


def activation_of(name: Any) -> Activation:
    if not isinstance(name, str) or name not in ACTIVATIONS:
        raise ModelNotSupported(f"activation {name!r} is not supported; supported: {', '.join(sorted(ACTIVATIONS))}")
    return ACTIVATIONS[name]

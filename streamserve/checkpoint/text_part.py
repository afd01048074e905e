"""Checkpoints that read images or sound beside text: the part that reads text, by its configuration and its tensors' names.

Pure data. Their config.json describes each part on its own, and the text part's tensors lie under a prefix, of which
transformers has had several.
"""

from __future__ import annotations

from typing import Any

TEXT = "text_config"
OTHERS = ("vision_config", "audio_config")

TEXT_PREFIXES = {"model.language_model.": "model.", "language_model.model.": "model.", "language_model.": ""}
"""What stands before the text part's tensors -> before those of a model that reads nothing else."""

OTHER_PREFIXES = ("visual.", "vision_tower.", "vision_model.", "vision_encoder.", "audio_tower.", "multi_modal_projector.")

LEFT_OUT: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131_072,
    },
}
"""What published configurations of a text part leave out, by its model_type: transformers' defaults."""


def has_other_parts(config: dict[str, Any]) -> bool:
    """Whether a config.json describes a model that reads more than text."""
    return any(isinstance(config.get(name), dict) for name in (TEXT, *OTHERS))


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """A config.json as one of the text part alone, with the architecture's name of the whole; others as they are.

    Where the two disagree about a head of its own, the whole counts, as in transformers.
    """
    if not has_other_parts(config):
        return config
    whole = {name: value for name, value in config.items() if name not in (TEXT, *OTHERS)}
    text = config.get(TEXT) or {}
    kept: dict[str, Any] = {name: whole[name] for name in ("architectures", "tie_word_embeddings") if name in whole}
    model_type = text.get("model_type") or whole.get("model_type")
    if "quantization_config" in whole:
        kept["quantization_config"] = _renamed(whole["quantization_config"])
    return {**whole, **LEFT_OUT.get(str(model_type), {}), **text, **kept}


def text_name(name: str) -> str | None:
    """A tensor's name in a model that reads nothing but text; None for a tensor of another part."""
    return None if name.removeprefix("model.").startswith(OTHER_PREFIXES) else _without_prefix(name)


def _without_prefix(name: str) -> str:
    prefix = next((prefix for prefix in TEXT_PREFIXES if name.startswith(prefix)), "")
    return TEXT_PREFIXES.get(prefix, "") + name.removeprefix(prefix)


def _renamed(value: Any) -> Any:
    """JSON with the names of modules in it as they are where the text part stands alone."""
    if isinstance(value, dict):
        return {key: _renamed(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_renamed(inner) for inner in value]
    return _without_prefix(value) if isinstance(value, str) else value

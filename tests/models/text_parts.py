"""Two-layer random models that read images beside text, as transformers builds them and as it and older versions store them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import transformers
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from tests.models.families import MINISTRAL3, SHAPE, randomized

TEXT = {name: value for name, value in SHAPE.items() if name != "pad_token_id"}
SIGLIP = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28}
PIXTRAL = SIGLIP | {"model_type": "pixtral", "patch_size": 14, "head_dim": 8}
QWEN = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 96}


def by_sections(*sections: int) -> dict[str, Any]:
    return {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": list(sections)}}


TEXT_PARTS: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gemma3": (
        "Gemma3",
        TEXT | {"head_dim": 32, "sliding_window": 20, "layer_types": ["sliding_attention", "full_attention"]},
        SIGLIP | {"patch_size": 14},
    ),
    "mistral3": ("Mistral3", TEXT | {"model_type": "mistral", "sliding_window": None}, PIXTRAL),
    "ministral3": ("Mistral3", TEXT | MINISTRAL3 | {"model_type": "ministral3"}, PIXTRAL),
    "qwen2.5-vl": ("Qwen2_5_VL", TEXT | by_sections(2, 3, 3), QWEN),
    "qwen3-vl": (
        "Qwen3VL",
        TEXT | by_sections(4, 6, 6) | {"head_dim": 32},
        QWEN | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    ),
    "qwen3-vl-moe": (
        "Qwen3VLMoe",
        TEXT
        | by_sections(4, 6, 6)
        | {"head_dim": 32, "num_experts": 8, "num_experts_per_tok": 3, "moe_intermediate_size": 40, "norm_topk_prob": True},
        QWEN | {"deepstack_visual_indexes": [0], "num_position_embeddings": 16},
    ),
}
"""Their names, and the configurations of both parts."""

OLD_NAMES = {
    "Gemma3": {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""},
    "Mistral3": {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head.", "model.": ""},
    "Qwen2_5_VL": {"model.language_model.": "model.", "model.visual.": "visual."},
}
"""Prefixes of tensors, and what transformers before 4.52 had in their places."""


def multimodal_model(name: str, **changed: Any) -> PreTrainedModel:
    """A random fp32 model, of which tests read texts only; `changed` of the text part's configuration."""
    prefix, text, vision = TEXT_PARTS[name]
    config = getattr(transformers, f"{prefix}Config")(text_config=text | changed, vision_config=vision)
    return randomized(lambda: getattr(transformers, f"{prefix}ForConditionalGeneration")(config))


def store(model: PreTrainedModel, folder: Path, *, old_names: bool = False, old_config: bool = False) -> None:
    """A file for each part, with an index.

    old_config  the text part's configuration beside the vision part's, not under a name of its own
    """
    folder.mkdir(exist_ok=True)
    model.config.save_pretrained(folder)
    prefix = type(model).__name__.removesuffix("ForConditionalGeneration")
    names = OLD_NAMES[prefix] if old_names else {}
    parts: dict[str, dict[str, Tensor]] = {"text.safetensors": {}, "vision.safetensors": {}}
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        file = "text.safetensors" if name.startswith(("model.language_model.", "lm_head.")) else "vision.safetensors"
        if ".experts." in name:
            # Stored as [in, out], against all other weights.
            tensor = tensor.mT
        old = next((old for old in names if name.startswith(old)), "")
        parts[file][names.get(old, "") + name.removeprefix(old)] = tensor.contiguous()
    for file, tensors in parts.items():
        save_file(tensors, folder / file)
    index = {"weight_map": {name: file for file, tensors in parts.items() for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = [type(model).__name__]
    if old_config:
        config |= {
            name: value for name, value in config.pop("text_config").items() if name not in ("model_type", "architectures")
        }
    (folder / "config.json").write_text(json.dumps(config))

"""A model's recommended sampling parameters."""

from __future__ import annotations

from typing import Any

from streamserve.checkpoint.files import Checkpoint
from streamserve.types import SamplingParams

_GENERATION_CONFIG_FIELDS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "top_k": "top_k",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def default_sampling_params(checkpoint: Checkpoint) -> dict[str, Any]:
    """The sampling parameters of a model's generation_config.json, by `SamplingParams` name. Raises `InvalidParameter`."""
    recommended = {
        name: checkpoint.generation_config[key]
        for key, name in _GENERATION_CONFIG_FIELDS.items()
        if checkpoint.generation_config.get(key) is not None
    }
    SamplingParams(**recommended)
    return recommended

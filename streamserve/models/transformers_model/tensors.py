"""Memory for a model that was made without: its parameters, which the checkpoint fills, and what it computes for itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from streamserve.models.transformers_model.classes import as_untyped
from streamserve.models.weights.placement import Placement


def allocate(model: PreTrainedModel, place: Placement) -> None:
    """Give every parameter and buffer memory at `place`; parameters stay uninitialised, buffers get their values."""
    _allocate_parameters(model, place)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            setattr(module, name, torch.empty_like(buffer, device=place.device))
    if place.device.type != "meta":
        # transformers computes buffers where it fills weights with noise, which those that are flagged are spared.
        as_untyped(model).initialize_weights()


def _allocate_parameters(model: PreTrainedModel, place: Placement) -> None:
    precise = _kept_in_float32(model, place.dtype)
    placed: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.is_meta and id(parameter) not in placed:
                full_name = f"{prefix}.{name}"
                dtype = torch.float32 if precise is not None and precise.search(full_name) else parameter.dtype
                placed[id(parameter)] = place.empty(*parameter.shape, dtype=dtype)
            # Tied parameters are one before and after.
            kept = placed.get(id(parameter), parameter)
            as_untyped(kept)._is_hf_initialized = True
            setattr(module, name, kept)


def _kept_in_float32(model: PreTrainedModel, dtype: torch.dtype) -> re.Pattern[str] | None:
    """Names of the parameters that a class wants in float32 whatever the model's dtype is."""
    names = set(model._keep_in_fp32_modules_strict or ())
    if dtype == torch.float16:
        names |= set(model._keep_in_fp32_modules or ())
    if not names or dtype == torch.float32:
        return None
    return re.compile("|".join(rf"(^|\.){re.escape(name)}($|\.)" for name in sorted(names)))


def fix_rotations(model: PreTrainedModel, max_positions: int) -> None:
    """Choose the frequencies of rotations that depend on the longest sequence of a batch, for sequences of `max_positions`.

    So that a token's rotation depends on nothing but its position, and a step not on numbers that the device has.
    """
    for module in map(as_untyped, model.modules()):
        kinds = getattr(module, "rope_type", None)
        if isinstance(kinds, dict):
            module.rope_type = {layers: _fixed(module, kind, max_positions, layers) for layers, kind in kinds.items()}
        elif isinstance(kinds, str):
            module.rope_type = _fixed(module, kinds, max_positions, None)


def _fixed(module: Any, kind: str, max_positions: int, layer_type: str | None) -> str:
    if "dynamic" not in kind and kind != "longrope":
        return kind
    prefix, options = ("", {}) if layer_type is None else (f"{layer_type}_", {"layer_type": layer_type})
    target: Tensor = getattr(module, f"{prefix}inv_freq")
    where = torch.device("cpu") if target.is_meta else target.device
    frequencies, scaling = ROPE_INIT_FUNCTIONS[kind](module.config, where, seq_len=max_positions, **options)
    target.copy_(frequencies)
    setattr(module, f"{prefix}attention_scaling", scaling)
    return "default"


def named_tensors(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What a checkpoint fills: every parameter once, by the first of its names, and the buffers that are stored."""
    yield from model.named_parameters()
    transient = {name for name, _ in model.named_non_persistent_buffers()}
    yield from ((name, buffer) for name, buffer in model.named_buffers() if name not in transient)

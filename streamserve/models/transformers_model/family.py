"""How an engine comes by a model of transformers: config.json to its shape, and that to the model."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from streamserve.errors import ModelNotSupported
from streamserve.models.arch import Arch
from streamserve.models.config_reading import architecture_of, dtype_of
from streamserve.models.transformers_model.arch import TransformersArch, observe
from streamserve.models.transformers_model.check import checked
from streamserve.models.transformers_model.classes import find_class, read_config, refuse_other_state
from streamserve.models.transformers_model.model import TransformersModel
from streamserve.models.weights.placement import Placement


def read_transformers(config: dict[str, Any]) -> TransformersArch:
    """The shape of a model that transformers' own layers run.

    Raises `ModelNotSupported`, naming what is in the way, unless a small model of the class was seen to compute in our step
    what it computes by itself.
    """
    name = architecture_of(config)
    model_class = find_class(name)
    if model_class is None:
        raise ModelNotSupported(f"architecture {name!r} is no decoder of the installed transformers")
    described = read_config(model_class, config)
    refuse_other_state(model_class, described)
    arch = observe(model_class, described, dtype_of(config))
    return checked(arch, _layers_of_every_kind(arch))


def build_transformers(arch: Arch, place: Placement, max_positions: int) -> TransformersModel:
    """The model of a shape that `read_transformers` returned, uninitialised."""
    assert isinstance(arch, TransformersArch)
    return TransformersModel(arch, place, max_positions)


def _layers_of_every_kind(arch: TransformersArch) -> int:
    """How many layers from the first on have every kind of layer that there is: by their modules, and how they attend."""
    layers = _layers(arch.without_memory(torch.float32), arch.config.num_hidden_layers)
    if layers is None:
        return 2
    prefix, members = layers
    first: dict[object, int] = {}
    for index, layer in enumerate(members):
        name = f"{prefix}.{index}."
        attends = [
            (call.q_heads, call.kv_heads, call.key_size, call.value_size, call.scale, call.window, call.softcap)
            for call in arch.calls
            if call.module.startswith(name)
        ]
        modules = [(path, type(module).__name__, *_settings(module)) for path, module in layer.named_modules()]
        first.setdefault((tuple(attends), tuple(modules)), index)
    return max(2, 1 + max(first.values())) if len(members) > 1 else 1


def _layers(model: PreTrainedModel, count: int) -> tuple[str, nn.ModuleList] | None:
    found = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList))
    return next((each for each in found if len(each[1]) == count), None)


def _settings(module: nn.Module) -> list[tuple[str, object]]:
    """A module's own numbers and flags, but for which layer it is of."""
    own = sorted((name, value) for name, value in vars(module).items() if isinstance(value, bool | int | float | str))
    return [(name, value) for name, value in own if "idx" not in name and "index" not in name]

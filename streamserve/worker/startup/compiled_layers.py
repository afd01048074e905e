"""Compiled layers on a CPU: which models run by them, and how they are made.

`streamserve compile` makes them, never an engine: compiling takes a minute, and an engine should be ready in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError, StreamserveError
from streamserve.models.aot.build import this_build
from streamserve.models.aot.marks import mark_compiled
from streamserve.models.aot.model import CompiledModel
from streamserve.models.aot.shape import can_compile, layer_shapes
from streamserve.models.aot.store import load_layer
from streamserve.models.architectures.base import CausalModel, LayeredModel
from streamserve.models.implementation import build_model, describe
from streamserve.models.weights.loader import load_model
from streamserve.models.weights.placement import Placement
from streamserve.process.cache import compiled_layers, require_private
from streamserve.worker.device.select import open_device
from streamserve.worker.startup.resolved_settings import resolve_dtype, resolve_kv_cache_dtype


def with_compiled_layers(model: CausalModel, block_size: int) -> CausalModel:
    """The model run by compiled layers, or itself where some have none. Raises `ConfigError` when they can't be loaded."""
    folder = compiled_layers()
    if not folder.is_dir() or not can_compile(model):
        return model
    shapes, build = layer_shapes(model, block_size), this_build()
    try:
        for path in (folder, *folder.rglob("*")):
            require_private(path)
        kernels = {shape: load_layer(shape, folder, build) for shape in set(shapes)}
    except (RuntimeError, PermissionError) as error:
        raise ConfigError(f"compiled layers can't be loaded: delete {folder}, or add --enforce-eager ({error})") from error
    by_layer = [found for shape in shapes if (found := kernels[shape]) is not None]
    return CompiledModel(model, by_layer) if len(by_layer) == len(shapes) else model


def run_compiled(model: CausalModel, config: EngineConfig, checkpoint: Checkpoint) -> CausalModel:
    """As `with_compiled_layers`, for an engine: its next start finds a mark, whoever had these layers compiled."""
    model = with_compiled_layers(model, config.block_size)
    if isinstance(model, CompiledModel):
        mark_compiled(config, checkpoint, compiled_layers())
    return model


def is_compiled(model: CausalModel) -> bool | None:
    """Whether a model's layers are compiled; None when they can't be."""
    return isinstance(model, CompiledModel) if can_compile(model) else None


def compile_for(config: EngineConfig, checkpoint: Checkpoint, on_piece: Callable[[str], None] = lambda name: None) -> Path:
    """Compile the layers that an engine of this configuration runs on a CPU; returns the folder of all that were ever compiled.

    on_piece  called with the name of each part as it begins
    Raises `ConfigError` for models that have none, on a GPU, and without a C++ compiler, and `StreamserveError` when it fails.
    """
    device = open_device(config.device)
    if not device.compiles_layers:
        raise ConfigError("only a CPU's layers are compiled ahead; on a GPU Triton's run: leave this out, or add --device cpu")
    arch = describe(checkpoint.config, config.model_impl)
    dtype = resolve_dtype(config.dtype, arch.dtype, device.torch_device)
    kv_dtype = resolve_kv_cache_dtype(config.kv_cache_dtype, checkpoint.config, dtype)
    # Without memory first: a model that can't be compiled is not worth loading.
    if not can_compile(build_model(arch, Placement(dtype, torch.device("meta"), kv_cache=kv_dtype), 1)):
        raise ConfigError(f"layers of {arch.architecture} are not compiled: they run as they are")
    # Loaded whole: what is compiled depends on the form that each weight takes.
    model = load_model(
        checkpoint, arch, dtype=dtype, device=device.torch_device, quantization=config.quantization, kv_dtype=kv_dtype
    )
    assert isinstance(model, LayeredModel)
    _compile(model, config.block_size, on_piece)
    mark_compiled(config, checkpoint, compiled_layers())
    return compiled_layers()


def _compile(model: LayeredModel, block_size: int, on_piece: Callable[[str], None]) -> None:
    # Here and not at the top: the compiler takes seconds to import, and engines never need it.
    from streamserve.models.aot.compiler import compile_layer

    build = this_build()
    layers = dict(zip(layer_shapes(model, block_size), model.layers, strict=True))
    try:
        for shape, layer in layers.items():
            compile_layer(layer, shape, compiled_layers(), build, on_piece)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        raise StreamserveError(f"compiling failed; engines run without compiled layers: {error}") from error

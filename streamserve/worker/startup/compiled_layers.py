"""Compiled layers on a CPU: which models run by them, and how they are made.

`streamserve compile` makes them, never an engine: compiling takes a minute, and an engine should be ready in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError, StreamserveError
from streamserve.models.aot.decoder import CompiledDecoder, can_compile, layer_shapes
from streamserve.models.aot.store import load_layer
from streamserve.models.architectures.base import CausalModel
from streamserve.models.architectures.decoder import Decoder
from streamserve.models.registry import read_arch
from streamserve.models.weights.loader import load_model
from streamserve.process.cache import compiled_layers
from streamserve.worker.device.select import open_device
from streamserve.worker.startup.resolved_settings import resolve_dtype


def with_compiled_layers(model: CausalModel, block_size: int) -> CausalModel:
    """The model run by compiled layers, or itself where some have none. Raises `ConfigError` when they can't be loaded."""
    if not isinstance(model, Decoder) or not can_compile(model.arch):
        return model
    shapes, folder = layer_shapes(model, block_size), compiled_layers()
    try:
        kernels = {shape: load_layer(shape, folder) for shape in set(shapes)}
    except RuntimeError as error:
        raise ConfigError(f"compiled layers can't be loaded: delete {folder}, or add --enforce-eager ({error})") from error
    by_layer = [found for shape in shapes if (found := kernels[shape]) is not None]
    return CompiledDecoder(model, by_layer) if len(by_layer) == len(shapes) else model


def is_compiled(model: CausalModel) -> bool | None:
    """Whether a model's layers are compiled; None when they can't be."""
    return isinstance(model, CompiledDecoder) if can_compile(model.arch) else None


def compile_for(config: EngineConfig, checkpoint: Checkpoint, on_piece: Callable[[str], None] = lambda name: None) -> Path:
    """Compile the layers that an engine of this configuration runs on a CPU; returns the folder of all that were ever compiled.

    on_piece  called with the name of each part as it begins
    Raises `ConfigError` for models that have none, on a GPU, and without a C++ compiler, and `StreamserveError` when it fails.
    """
    device = open_device(config.device)
    if not device.compiles_layers:
        raise ConfigError("only a CPU's layers are compiled ahead; on a GPU Triton's run: leave this out, or add --device cpu")
    arch = read_arch(checkpoint.config)
    if not can_compile(arch):
        raise ConfigError(f"layers of {arch.architecture} are not compiled: they run as they are")
    # Loaded whole: what is compiled depends on the form that each weight takes.
    model = load_model(
        checkpoint,
        arch,
        dtype=resolve_dtype(config.dtype, arch.dtype, device.torch_device),
        device=device.torch_device,
        quantization=config.quantization,
    )
    assert isinstance(model, Decoder), "only decoders can be compiled"
    # Here and not at the top: the compiler takes seconds to import, and engines never need it.
    from streamserve.models.aot.compiler import compile_layer

    try:
        for shape in dict.fromkeys(layer_shapes(model, config.block_size)):
            compile_layer(shape, compiled_layers(), on_piece)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        raise StreamserveError(f"compiling failed; engines run without compiled layers: {error}") from error
    return compiled_layers()

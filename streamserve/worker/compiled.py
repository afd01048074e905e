"""Compiled layers on a CPU: where this machine keeps them, which models have them, and how they are made.

`streamserve compile` makes them, never an engine: compiling takes half a minute, and an engine should be ready in seconds.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

from streamserve.checkpoint import Checkpoint
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError, StreamserveError
from streamserve.models.compiled import CompiledDecoder, layer_shape
from streamserve.models.decoder import Decoder
from streamserve.models.model import CausalModel
from streamserve.models.registry import read_arch
from streamserve.worker.device import open_device
from streamserve.worker.dtypes import resolve_dtype
from streamserve_kernels.inductor.store import load_layer


def library() -> Path:
    """The user's folder of compiled layers."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "streamserve" / "compiled"


def with_compiled_layers(model: CausalModel, dtype: torch.dtype, block_size: int) -> CausalModel:
    """The model run by compiled layers, or itself where it has none. Raises `ConfigError` when they can't be loaded."""
    shape = layer_shape(model.arch, dtype, block_size)
    try:
        kernels = load_layer(shape, library()) if shape is not None else None
    except RuntimeError as error:
        raise ConfigError(f"compiled layers can't be loaded: delete {library()}, or add --enforce-eager ({error})") from error
    if kernels is None:
        return model
    assert isinstance(model, Decoder), "only decoders have a layer shape"
    return CompiledDecoder(model, kernels)


def is_compiled(model: CausalModel, dtype: torch.dtype, block_size: int) -> bool | None:
    """Whether a model's layers are compiled; None when they can't be."""
    if isinstance(model, CompiledDecoder):
        return True
    return None if layer_shape(model.arch, dtype, block_size) is None else False


def compile_for(config: EngineConfig, checkpoint: Checkpoint, on_piece: Callable[[str], None] = lambda name: None) -> Path:
    """Compile the layers that an engine of this configuration runs on a CPU; returns where they lie.

    on_piece  called with the name of each part as it begins
    Raises `ConfigError` for models that have none, on a GPU, and without a C++ compiler, and `StreamserveError` when it fails.
    """
    device = open_device(config.device)
    if not device.compiles_layers:
        raise ConfigError("only a CPU's layers are compiled ahead; on a GPU Triton's run: leave this out, or add --device cpu")
    arch = read_arch(checkpoint.config)
    shape = layer_shape(arch, resolve_dtype(config.dtype, arch.dtype, device.torch_device), config.block_size)
    if shape is None:
        raise ConfigError(f"layers of {arch.architecture} are not compiled: they run as they are")
    # Here and not at the top: the compiler takes seconds to import, and engines never need it.
    from streamserve_kernels.inductor.compiler import compile_layer

    try:
        return compile_layer(shape, library(), on_piece)
    except FileNotFoundError as error:
        raise ConfigError(str(error)) from error
    except RuntimeError as error:
        raise StreamserveError(f"compiling failed; engines run without compiled layers: {error}") from error

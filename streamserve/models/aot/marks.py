"""Marks of the models whose layers were compiled, for those who must know before torch is imported.

Which machine code a model needs follows from its loaded layers (`store`). A mark says less, and sooner: that this model, with
these settings, had all of it. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.models.aot.build import this_build


def has_compiled_layers(config: EngineConfig, checkpoint: Checkpoint, library: Path) -> bool:
    """Whether an engine of this configuration will run compiled layers, as far as is known without torch.

    library  the folder that layers were compiled into
    """
    return not config.enforce_eager and _mark(config, checkpoint, library).exists()


def mark_compiled(config: EngineConfig, checkpoint: Checkpoint, library: Path) -> None:
    """Remember that every layer of this model is in the library."""
    if library.is_dir():
        _mark(config, checkpoint, library).touch()


def _mark(config: EngineConfig, checkpoint: Checkpoint, library: Path) -> Path:
    stat = checkpoint.path.stat()
    stored = [str(checkpoint.path.resolve()), checkpoint.format, stat.st_size, stat.st_mtime_ns]
    settings = [config.dtype, config.block_size, config.quantization, config.kv_cache_dtype]
    content = json.dumps([this_build(), checkpoint.config, stored, settings], sort_keys=True, default=str)
    return library / f"{hashlib.sha256(content.encode()).hexdigest()[:32]}.model"

"""The user's folder for what this program can make again. Asked before torch is imported, so it imports nothing."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """One part of it, which may not be there yet."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "streamserve" / name


def compiled_layers() -> Path:
    """Layers compiled for a CPU, of any model; it is there once something was compiled."""
    return cache_folder("compiled")

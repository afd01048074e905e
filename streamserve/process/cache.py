"""The folders of this program in the user's cache. Used before torch is imported, so it imports the standard library only."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder(name: str) -> Path:
    """One of the folders, which may not exist yet."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "streamserve" / name


def compiled_layers() -> Path:
    """The folder of layers compiled for a CPU, of all models; it exists once something was compiled."""
    return cache_folder("compiled")

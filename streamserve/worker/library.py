"""Where this machine keeps compiled layers. Asked before torch is imported, so it must not import it."""

from __future__ import annotations

import os
from pathlib import Path


def library() -> Path:
    """The user's folder of compiled layers, of any model; it is there once something was compiled."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "streamserve" / "compiled"

"""What compiled layers depend on beside the model: our sources, torch, and the CPU. Imports no torch."""

from __future__ import annotations

import hashlib
import platform
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

TRACED_SOURCES = ("models/aot", "models/architectures", "models/layers", "models/weights/forms")
"""Folders of this package whose code runs while a layer is traced, or says what is traced."""


class Build(NamedTuple):
    """Two builds that are equal can run each other's machine code.

    torch    its version, with what it was built for
    cpu      architecture and instructions, as far as the system says
    sources  digest of everything that is traced or traces
    """

    torch: str
    cpu: str
    sources: str


def this_build() -> Build:
    """Of this process."""
    package, kernels = Path(__file__).parents[2], find_spec("streamserve_kernels")
    assert kernels is not None
    assert kernels.origin is not None
    folders = [*(package / folder for folder in TRACED_SOURCES), Path(kernels.origin).parent / "reference"]
    return Build(version("torch"), f"{platform.machine()} {_instructions()}", digest(folders))


def digest(folders: list[Path]) -> str:
    """Changes with the name or the text of any Python file below the folders."""
    total = hashlib.sha256()
    for folder in folders:
        for file in sorted(folder.rglob("*.py")):
            total.update(f"{file.relative_to(folder.parent).as_posix()}\0".encode())
            total.update(hashlib.sha256(file.read_bytes()).digest())
    return total.hexdigest()


def _instructions() -> str:
    """Of this CPU: code is compiled for all of them."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())

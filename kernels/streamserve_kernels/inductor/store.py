"""Compiled pieces on disk: a folder for every shape, torch release and kind of CPU.

What lies there is machine code that a process of this user runs, made by `compiler` on this machine and nobody else's. Loading
takes milliseconds, and none of the compiler's imports, which take seconds.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from streamserve_kernels.inductor.pieces import LayerShape

PIECES = ("norm", "gate", "write", "attend")
SOURCES = ("pieces.py", "compiler.py")


@dataclass(frozen=True)
class LayerKernels:
    """The pieces of `pieces`, compiled or not, with the arguments of their `forward`."""

    shape: LayerShape
    norm: Callable[[Tensor, Tensor], Tensor]
    gate: Callable[[Tensor], Tensor]
    write: Callable[..., Tensor]
    attend: Callable[..., Tensor]


def load_layer(shape: LayerShape, library: Path) -> LayerKernels | None:
    """The compiled pieces of a shape, or None when there are none for this torch and this CPU."""
    folder = folder_of(shape, library)
    if not folder.is_dir():
        return None
    return LayerKernels(shape, *(load_piece(folder / f"{name}.pt2") for name in PIECES))


def load_piece(path: Path) -> Callable[..., Tensor]:
    """One compiled piece: takes tensors by position, as its module's `forward` does."""
    # Torch's C++ loader itself: `aoti_load_package` imports the compiler, and what it returns takes longer to look at its
    # arguments than a norm takes.
    run = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1).run  # type: ignore[attr-defined]

    def call(*arguments: Tensor) -> Tensor:
        results: list[Tensor] = run(list(arguments))
        return results[0]

    return call


def folder_of(shape: LayerShape, library: Path) -> Path:
    """Where a shape's pieces lie; the name changes with everything that machine code depends on."""
    sources = [Path(__file__).with_name(name).read_text() for name in SOURCES]
    said = json.dumps([asdict(shape), torch.__version__, platform.machine(), _cpu(), sources])
    return library / hashlib.sha256(said.encode()).hexdigest()[:32]


def _cpu() -> str:
    """The instructions of this CPU, as far as the system says: code is compiled for all of them."""
    capability: str = torch.backends.cpu.get_cpu_capability()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return capability
    return next((line for line in lines if line.startswith(("flags", "Features"))), capability)

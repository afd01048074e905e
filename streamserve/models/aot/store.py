"""Compiled pieces on disk: a folder for every shape, torch release and kind of CPU.

What lies there is machine code that a process of this user runs, made by `compiler` on this machine and nobody else's. Loading
takes milliseconds, and none of the compiler's imports, which take seconds.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor, nn

from streamserve.models.aot.shape import LayerShape

SOURCES = ("shape.py", "products.py", "pieces.py", "lowerings.py", "examples.py", "compiler.py")

Piece: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Runs a piece: the arguments of its module's `forward` but for the weights, and the weights."""


@dataclass(frozen=True)
class LayerKernels:
    """The pieces of `pieces` for one shape, compiled or not.

    before, after  around the attention of steps with prompts
    decode         whole layers of other steps
    decode_few     the same for few rows where those have weights of their own
    """

    shape: LayerShape
    before: Piece
    after: Piece
    decode: Piece
    decode_few: Piece | None


def piece_names(shape: LayerShape) -> list[str]:
    """The pieces that a shape has, as `LayerKernels` calls them."""
    return ["before", "after", "decode", *(["decode_few"] if shape.is_packed else [])]


def load_layer(shape: LayerShape, library: Path) -> LayerKernels | None:
    """The compiled pieces of a shape, or None when there are none for this torch and this CPU."""
    folder = folder_of(shape, library)
    if not folder.is_dir():
        return None
    pieces = {name: load_piece(folder / f"{name}.pt2") for name in piece_names(shape)}
    return LayerKernels(shape, pieces["before"], pieces["after"], pieces["decode"], pieces.get("decode_few"))


def load_piece(path: Path) -> Piece:
    """One compiled piece."""
    # Torch's C++ loader itself: `aoti_load_package` imports the compiler, and what it returns looks long at its arguments.
    run = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1).run

    def call(arguments: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        results: list[Tensor] = run([*arguments, *weights])
        return results[0]

    return call


def uncompiled(piece: nn.Module) -> Piece:
    """A piece as torch runs it without having compiled it."""

    def call(arguments: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        result: Tensor = piece(*arguments, list(weights))
        return result

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

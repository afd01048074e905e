"""Compiled pieces on disk: a folder for every shape of a layer and every build.

What lies there is machine code that a process of this user runs, made by `compiler` on this machine and by nothing else.
Loading takes milliseconds, and none of the compiler's imports, which take seconds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import torch
from torch import Tensor

from streamserve.models.aot.build import Build
from streamserve.models.aot.pieces import Piece, piece_names
from streamserve.models.aot.shape import LayerShape

RunPiece: TypeAlias = Callable[[Sequence[Tensor], Sequence[Tensor]], Tensor]
"""Runs a piece: its arguments but for the weights, and the weights."""


@dataclass(frozen=True)
class LayerKernels:
    """The pieces of one shape, compiled or not.

    before, after  around the attention of steps with prompts
    decode         whole layers of other steps
    decode_few     the same for few rows where those have weights of their own
    """

    shape: LayerShape
    before: RunPiece
    after: RunPiece
    decode: RunPiece
    decode_few: RunPiece | None


def load_layer(shape: LayerShape, library: Path, build: Build) -> LayerKernels | None:
    """The compiled pieces of a shape, or None when there are none for this build."""
    folder = folder_of(shape, library, build)
    if not folder.is_dir():
        return None
    pieces = {name: load_piece(folder / f"{name}.pt2") for name in piece_names(shape)}
    return LayerKernels(shape, pieces["before"], pieces["after"], pieces["decode"], pieces.get("decode_few"))


def load_piece(path: Path) -> RunPiece:
    """One compiled piece."""
    # Torch's C++ loader itself: `aoti_load_package` imports the compiler, and what it returns looks long at its arguments.
    run = torch._C._aoti.AOTIModelPackageLoader(str(path), "model", True, 1, -1).run

    def call(arguments: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        results: list[Tensor] = run([*arguments, *weights])
        return results[0]

    return call


def uncompiled(piece: Piece) -> RunPiece:
    """A piece as torch runs it without having compiled it."""

    def call(arguments: Sequence[Tensor], weights: Sequence[Tensor]) -> Tensor:
        result: Tensor = piece(*arguments, list(weights))
        return result

    return call


def folder_of(shape: LayerShape, library: Path, build: Build) -> Path:
    """Where a shape's pieces lie; the name changes with everything that machine code depends on."""
    content = json.dumps([asdict(shape), build])
    return library / hashlib.sha256(content.encode()).hexdigest()[:32]

"""Compiling a layer's pieces with TorchInductor, ahead of time (AOTInductor), into a library.

https://docs.pytorch.org/docs/stable/user_guide/torch_compiler/torch.compiler_aot_inductor.html. Never on the way of an engine.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
import torch._inductor
from torch import Tensor
from torch.export import export

import streamserve.models.aot.lowerings  # noqa: F401  registers them
from streamserve.models.aot.build import Build
from streamserve.models.aot.examples import Example, example, rows_of
from streamserve.models.aot.pieces import Piece, piece_names, trace_piece
from streamserve.models.aot.shape import LayerShape
from streamserve.models.aot.store import RunPiece, folder_of, load_piece, uncompiled
from streamserve.models.architectures.base import Layer

COMPILERS = ("g++", "clang++")
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Relative error of compiled pieces, whose sums run in another order."""


def compile_layer(
    layer: Layer, shape: LayerShape, library: Path, build: Build, on_piece: Callable[[str], None] = lambda name: None
) -> Path:
    """Compile the pieces of a layer of this shape into the library, some 10 s a piece, unless they are
    there. Returns their folder.

    on_piece  called with the name of each piece before it is compiled
    Raises `FileNotFoundError` without a C++ compiler, `RuntimeError` when compiled code computes something else than torch does
    without it, and what torch raises when compiling fails.
    """
    folder = folder_of(shape, library, build)
    if folder.is_dir():
        return folder
    if "CXX" not in os.environ and not any(shutil.which(name) for name in COMPILERS):
        raise FileNotFoundError(f"no C++ compiler is on the PATH: install one of {', '.join(COMPILERS)}")
    library.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for name in piece_names(shape):
            on_piece(name)
            piece = trace_piece(name, layer, shape)
            _compile(example(name, piece, shape, rows_of(name)), made / f"{name}.pt2")
            _check(name, piece, shape, made / f"{name}.pt2")
        # In one move, so that an engine that starts meanwhile finds all pieces or none.
        made.rename(folder)
    return folder


def _compile(case: Example, path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about torch
        dynamic = ((*case.dynamic, [None for _ in case.stand_ins]),)
        program = export(case.piece, (*case.arguments, case.stand_ins), dynamic_shapes=dynamic)
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"assert_indirect_indexing": False}
        )


def _check(name: str, piece: Piece, shape: LayerShape, path: Path) -> None:
    """Compare a compiled piece with itself uncompiled, for one row and for several."""
    compiled = load_piece(path)
    for rows in (1, rows_of(name)):
        case = example(name, piece, shape, rows)
        for got, wanted in zip(_results(compiled, case), _results(uncompiled(piece), case), strict=True):
            if not (got - wanted).norm() <= TOLERANCE[shape.torch_dtype] * wanted.norm():
                raise RuntimeError(f"{name}, compiled, gives other numbers than uncompiled: this compiler can't be used")


@torch.inference_mode()
def _results(run: RunPiece, case: Example) -> list[Tensor]:
    """What a piece returns, and its arguments as it leaves them, since a KV cache is written in place."""
    arguments = [argument.clone() for argument in case.arguments]
    return [run(arguments, case.weights).float(), *(argument.float() for argument in arguments)]

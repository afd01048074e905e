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
from torch import Tensor, nn
from torch.export import Dim, export

from streamserve_kernels.inductor.decode import DecodeIndices, decode_groups
from streamserve_kernels.inductor.library import folder_of, load_piece
from streamserve_kernels.inductor.pieces import DecodeAttention, Gate, LayerShape, Norm

COMPILERS = ("g++", "clang++")
EXAMPLE_ROWS = 8
EXAMPLE_BLOCKS = 40
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Relative error of compiled pieces, whose sums run in another order."""


def compile_layer(shape: LayerShape, library: Path, on_piece: Callable[[str], None] = lambda name: None) -> Path:
    """Compile the pieces of a shape into the library, and return their folder; takes some 10 s a piece.

    on_piece  called with the name of each piece before it is compiled
    Raises `FileNotFoundError` without a C++ compiler, `RuntimeError` when compiled code computes something else than torch does
    without it, and what torch raises when compiling fails.
    """
    if "CXX" not in os.environ and not any(shutil.which(name) for name in COMPILERS):
        raise FileNotFoundError(f"no C++ compiler is on the PATH: install one of {', '.join(COMPILERS)}")
    library.mkdir(parents=True, exist_ok=True)
    folder = folder_of(shape, library)
    with tempfile.TemporaryDirectory(dir=library) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for name, (piece, arguments, dynamic) in _examples(shape, EXAMPLE_ROWS).items():
            on_piece(name)
            _compile(piece, arguments, dynamic, made / f"{name}.pt2")
        _check(shape, made)
        shutil.rmtree(folder, ignore_errors=True)
        # In one move, so that an engine that starts meanwhile finds all pieces or none.
        made.rename(folder)
    return folder


def _check(shape: LayerShape, folder: Path) -> None:
    """Compare the compiled pieces with themselves uncompiled, for one row and for several."""
    for rows in (1, EXAMPLE_ROWS):
        for name, (piece, arguments, _) in _examples(shape, rows).items():
            expected = piece(*(argument.clone() for argument in arguments)).float()
            got = load_piece(folder / f"{name}.pt2")(*arguments).float()
            error = (got - expected).norm() / expected.norm()
            if not error < TOLERANCE[shape.torch_dtype]:
                raise RuntimeError(f"compiled {name} for {rows} rows is off by {error:.1e}: this compiler can't be used")


def _compile(piece: nn.Module, arguments: tuple[Tensor, ...], dynamic: tuple[object, ...], path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about torch
        program = export(piece, arguments, dynamic_shapes=dynamic)
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"assert_indirect_indexing": False}
        )


def _examples(shape: LayerShape, num_rows: int) -> dict[str, tuple[nn.Module, tuple[Tensor, ...], tuple[object, ...]]]:
    """Every piece with arguments to trace it by, and which of their sizes vary."""
    rows, width, blocks = Dim("rows"), Dim("width"), Dim("blocks")
    num_heads = shape.q_heads + 2 * shape.kv_heads

    def random(*size: int) -> Tensor:
        return torch.randn(size).to(shape.torch_dtype)

    # Two tensors: tracing takes one that is passed twice for one argument.
    norms = [random(shape.head_dim) for _ in range(2 if shape.qk_norm else 0)]
    by_heads = {0: shape.q_heads * rows}
    return {
        "norm": (Norm(shape), (random(num_rows, shape.hidden_size), random(shape.hidden_size)), ({0: rows}, None)),
        "gate": (Gate(shape), (random(num_rows, 2 * shape.intermediate_size),), ({0: rows},)),
        "attend": (
            DecodeAttention(shape),
            (
                random(num_rows, num_heads * shape.head_dim),
                random(EXAMPLE_BLOCKS, 2, shape.kv_heads, shape.block_size, shape.head_dim),
                *_example_indices(shape, num_rows),
                *norms,
            ),
            (
                {0: rows},
                {0: blocks},
                *({0: rows} for _ in ("cos", "sin", "places")),
                {1: shape.q_heads * rows, 2: width},
                by_heads,
                by_heads,
                *[None for _ in norms],
            ),
        ),
    }


def _example_indices(shape: LayerShape, num_rows: int) -> DecodeIndices:
    """Of sequences of four blocks, the last not full."""
    length = 4 * shape.block_size - 3
    tables = torch.arange(num_rows * 4, dtype=torch.int32).view(num_rows, 4)
    positions = torch.full((num_rows,), length - 1)
    slots = tables[:, -1].long() * shape.block_size + (length - 1) % shape.block_size
    [group] = decode_groups(shape, positions, slots, tables, torch.rand(length, shape.rot_dim), None, EXAMPLE_BLOCKS)
    return group.indices

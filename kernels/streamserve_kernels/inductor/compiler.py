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
from typing import NamedTuple

import torch
import torch._inductor
from torch import Tensor, nn
from torch.export import Dim, export

from streamserve_kernels.inductor.indices import DecodeIndices, decode_groups
from streamserve_kernels.inductor.pieces import DecodeAttention, Gate, LayerShape, Norm, RotaryWrite
from streamserve_kernels.inductor.store import folder_of, load_piece

COMPILERS = ("g++", "clang++")
EXAMPLE_ROWS = 8
EXAMPLE_BLOCKS = 40
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Relative error of compiled pieces, whose sums run in another order."""


class _Example(NamedTuple):
    """A piece, arguments to trace it by, and for each which of its sizes vary."""

    piece: nn.Module
    arguments: tuple[Tensor, ...]
    dynamic: tuple[object, ...]


def compile_layer(shape: LayerShape, library: Path, on_piece: Callable[[str], None] = lambda name: None) -> Path:
    """Compile the pieces of a shape into the library, unless they are there; some 10 s a piece. Returns their folder.

    on_piece  called with the name of each piece before it is compiled
    Raises `FileNotFoundError` without a C++ compiler, `RuntimeError` when compiled code computes something else than torch does
    without it, and what torch raises when compiling fails.
    """
    folder = folder_of(shape, library)
    if folder.is_dir():
        return folder
    if "CXX" not in os.environ and not any(shutil.which(name) for name in COMPILERS):
        raise FileNotFoundError(f"no C++ compiler is on the PATH: install one of {', '.join(COMPILERS)}")
    library.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library) as scratch:
        made = Path(scratch) / "made"
        made.mkdir()
        for name, example in _examples(shape, EXAMPLE_ROWS).items():
            on_piece(name)
            _compile(example, made / f"{name}.pt2")
        _check(shape, made)
        # In one move, so that an engine that starts meanwhile finds all pieces or none.
        made.rename(folder)
    return folder


def _check(shape: LayerShape, folder: Path) -> None:
    """Compare the compiled pieces with themselves uncompiled, for one row and for several."""
    for rows in (1, EXAMPLE_ROWS):
        for name, example in _examples(shape, rows).items():
            compiled = load_piece(folder / f"{name}.pt2")
            for got, expected in zip(*(_results(run, example) for run in (compiled, example.piece)), strict=True):
                if not (got - expected).norm() <= TOLERANCE[shape.torch_dtype] * expected.norm():
                    raise RuntimeError(f"{name}, compiled, gives other numbers than uncompiled: this compiler can't be used")


def _results(run: Callable[..., Tensor], example: _Example) -> list[Tensor]:
    """What a piece returns, and its arguments as it leaves them, since a KV cache is written in place."""
    arguments = [argument.clone() for argument in example.arguments]
    return [run(*arguments).float(), *(argument.float() for argument in arguments)]


def _compile(example: _Example, path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about torch
        program = export(example.piece, example.arguments, dynamic_shapes=example.dynamic)
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"assert_indirect_indexing": False}
        )


def _examples(shape: LayerShape, num_rows: int) -> dict[str, _Example]:
    rows, width, blocks = Dim("rows"), Dim("width"), Dim("blocks")

    def random(*size: int) -> Tensor:
        return torch.randn(size).to(shape.torch_dtype)

    qkv = random(num_rows, (shape.q_heads + 2 * shape.kv_heads) * shape.head_dim)
    kv_cache = random(EXAMPLE_BLOCKS, 2, shape.kv_heads, shape.block_size, shape.head_dim)
    indices = _example_indices(shape, num_rows)
    # Two tensors: tracing takes one that is passed twice for one argument.
    norms = [random(shape.head_dim) for _ in range(2 if shape.qk_norm else 0)]
    # What the pieces with a cache have in common: qkv, kv_cache, cos, sin, places; and the norms at the end.
    common, unvaried = ({0: rows}, {0: blocks}, {0: rows}, {0: rows}, {0: rows}), [None for _ in norms]
    heads = {0: shape.q_heads * rows}
    cells = {1: shape.q_heads * rows, 2: width}
    hidden, weight, gate_up = (num_rows, shape.hidden_size), (shape.hidden_size,), (num_rows, 2 * shape.intermediate_size)
    return {
        "norm": _Example(Norm(shape), (random(*hidden), random(*weight)), ({0: rows}, None)),
        "gate": _Example(Gate(shape), (random(*gate_up),), ({0: rows},)),
        "write": _Example(RotaryWrite(shape), (qkv, kv_cache, *indices[:3], *norms), (*common, *unvaried)),
        "attend": _Example(
            DecodeAttention(shape), (qkv, kv_cache, *indices, *norms), (*common, cells, heads, heads, *unvaried)
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

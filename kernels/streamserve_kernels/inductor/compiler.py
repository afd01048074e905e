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

import streamserve_kernels.inductor.lowerings  # noqa: F401  registers them
from streamserve_kernels.inductor.indices import UNIT_TOKENS, attention_units
from streamserve_kernels.inductor.pieces import AfterAttention, BeforeAttention, DecodeLayer
from streamserve_kernels.inductor.shape import LayerShape, LinearShape
from streamserve_kernels.inductor.store import Piece, folder_of, load_piece, piece_names, uncompiled
from streamserve_kernels.reference.int4 import FEW_ROWS, GROUP

COMPILERS = ("g++", "clang++")
EXAMPLE_ROWS = 8
EXAMPLE_TOKENS = 2 * UNIT_TOKENS - 3
TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}
"""Relative error of compiled pieces, whose sums run in another order."""


class _Example(NamedTuple):
    """A piece, arguments to run it with, and for each but the weights which of its sizes vary.

    stand_ins  the weights as tracing takes them: it can't look into oneDNN's
    """

    piece: nn.Module
    arguments: tuple[Tensor, ...]
    dynamic: tuple[object, ...]
    weights: list[Tensor]
    stand_ins: list[Tensor]


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
        for name in piece_names(shape):
            on_piece(name)
            _compile(_example(name, shape, FEW_ROWS if name == "decode_few" else EXAMPLE_ROWS), made / f"{name}.pt2")
        _check(shape, made)
        # In one move, so that an engine that starts meanwhile finds all pieces or none.
        made.rename(folder)
    return folder


def _compile(example: _Example, path: Path) -> None:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # torch's own, about torch
        dynamic = (*example.dynamic, [None for _ in example.stand_ins])
        program = export(example.piece, (*example.arguments, example.stand_ins), dynamic_shapes=dynamic)
        torch._inductor.aoti_compile_and_package(
            program, package_path=str(path), inductor_configs={"assert_indirect_indexing": False}
        )


def _check(shape: LayerShape, folder: Path) -> None:
    """Compare the compiled pieces with themselves uncompiled, for one row and for several."""
    for name in piece_names(shape):
        compiled = load_piece(folder / f"{name}.pt2")
        for rows in (1, FEW_ROWS if name == "decode_few" else EXAMPLE_ROWS):
            example = _example(name, shape, rows)
            for got, wanted in zip(_results(compiled, example), _results(uncompiled(example.piece), example), strict=True):
                if not (got - wanted).norm() <= TOLERANCE[shape.torch_dtype] * wanted.norm():
                    raise RuntimeError(f"{name}, compiled, gives other numbers than uncompiled: this compiler can't be used")


@torch.inference_mode()
def _results(run: Piece, example: _Example) -> list[Tensor]:
    """What a piece returns, and its arguments as it leaves them, since a KV cache is written in place."""
    arguments = [argument.clone() for argument in example.arguments]
    return [run(arguments, example.weights).float(), *(argument.float() for argument in arguments)]


def _example(name: str, shape: LayerShape, num_rows: int) -> _Example:
    rows, blocks, units, most = Dim("rows"), Dim("blocks"), Dim("units"), Dim("most")
    width = Dim("width") if shape.block_size < UNIT_TOKENS else None
    few = name == "decode_few"
    before, after = _Weights(shape, few), _Weights(shape, few)
    before.add_norm(shape.qkv.in_features)
    before.add(shape.qkv)
    for _ in range(2 if shape.qk_norm else 0):
        before.add_norm(shape.head_dim)
    after.add(shape.output)
    after.add_norm(shape.gate_up.in_features)
    after.add(shape.gate_up)
    after.add(shape.down)

    hidden = _random(shape, num_rows, shape.output.out_features)
    if name == "after":
        attended = _random(shape, num_rows, shape.output.in_features)
        return _Example(AfterAttention(shape), (attended, hidden), ({0: rows}, {0: rows}), after.real, after.stand_ins)
    num_blocks = num_rows * -(-EXAMPLE_TOKENS // shape.block_size)
    kv_cache = _random(shape, num_blocks, 2, shape.kv_heads, shape.block_size, shape.head_dim)
    tables = torch.arange(num_blocks, dtype=torch.int32).view(num_rows, -1)
    slots = tables[:, -1].long() * shape.block_size + (EXAMPLE_TOKENS - 1) % shape.block_size
    arguments = (hidden, kv_cache, torch.rand(num_rows, 2, shape.rot_dim), slots)
    sizes = ({0: rows}, {0: blocks}, {0: rows}, {0: rows})
    if name == "before":
        return _Example(BeforeAttention(shape), arguments, sizes, before.real, before.stand_ins)
    positions = torch.full((num_rows,), EXAMPLE_TOKENS - 1)
    attended = attention_units(shape, positions, tables, None, num_blocks)
    return _Example(
        DecodeLayer(shape, few=few),
        (*arguments, *attended),
        (*sizes, {0: units}, {0: units, 1: width}, {0: units}, {0: units}, {0: rows, 1: most}),
        before.real + after.real,
        before.stand_ins + after.stand_ins,
    )


class _Weights:
    """Random weights, as pieces are run with and as they are traced with."""

    def __init__(self, shape: LayerShape, few: bool) -> None:
        self._shape = shape
        self._few = few
        self.real: list[Tensor] = []
        self.stand_ins: list[Tensor] = []

    def add_norm(self, size: int) -> None:
        self._add(_random(self._shape, size))

    def add(self, linear: LinearShape) -> None:
        if self._few and linear.digits:
            packed_features = linear.digits * linear.in_features
            self._add(torch.randint(0, 256, (linear.out_features, packed_features // 2), dtype=torch.uint8))
            self._add(_random(self._shape, packed_features // GROUP, linear.out_features, 2) / 100)
        else:
            plain = _random(self._shape, linear.out_features, linear.in_features) / linear.in_features**0.5
            self._add(plain, torch.ops.mkldnn._reorder_linear_weight(plain) if linear.form == "blocked" else None)
        if linear.bias:
            self._add(_random(self._shape, linear.out_features))

    def _add(self, stand_in: Tensor, real: Tensor | None = None) -> None:
        self.stand_ins.append(stand_in)
        self.real.append(stand_in if real is None else real)


def _random(shape: LayerShape, *size: int) -> Tensor:
    return torch.randn(size).to(shape.torch_dtype)

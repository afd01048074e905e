"""A compiled decoder computes what its layers compute. The pieces run uncompiled here, but for the slow tests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from streamserve.checkpoint.names import resolve
from streamserve.models.aot.build import this_build
from streamserve.models.aot.compiler import compile_layer
from streamserve.models.aot.model import CompiledModel
from streamserve.models.aot.pieces import trace_piece
from streamserve.models.aot.shape import LayerShape, can_compile, layer_shapes
from streamserve.models.aot.store import LayerKernels, load_layer, uncompiled
from streamserve.models.architectures.base import CausalModel, Layer
from streamserve.models.registry import read_arch
from streamserve.models.weights.loader import load_model
from tests.models.families import FAMILIES, load, reference_model
from tests.models.paged import BLOCK_SIZE, PagedRun

DECODERS = [name for name, (prefix, settings) in FAMILIES.items() if prefix != "OPT" and "num_experts_per_tok" not in settings]


def saved(family: str, folder: Path) -> CausalModel:
    reference_model(*FAMILIES[family]).save_pretrained(folder)
    return load(folder)


def compiled(model: CausalModel, library: Path | None = None) -> CompiledModel:
    """The model in compiled pieces, or in uncompiled ones where there is no library."""
    shapes = zip(layer_shapes(model, BLOCK_SIZE), model.layers, strict=True)
    kernels = [
        eager_kernels(layer, shape) if library is None else load_layer(shape, library, this_build()) for shape, layer in shapes
    ]
    return CompiledModel(model, [pieces for pieces in kernels if pieces is not None])


def eager_kernels(layer: Layer, shape: LayerShape) -> LayerKernels:
    """The pieces as torch runs them uncompiled."""
    before, after, decode = (uncompiled(trace_piece(name, layer, shape)) for name in ("before", "after", "decode"))
    few = uncompiled(trace_piece("decode_few", layer, shape)) if shape.is_packed else None
    return LayerKernels(shape, before, after, decode, few)


def tokens(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, 199), k=count)


def assert_same_crowd(model: CausalModel, other: CausalModel) -> None:
    """Prompts alone and beside decodes, then decodes of like and of unlike lengths, give the same logits."""
    runs = PagedRun(model), PagedRun(other)
    prompts = {"a": tokens(50, 0), "b": tokens(7, 1), "c": tokens(31, 2)}
    works = [
        {"a": prompts["a"]},
        {"a": [5], "b": prompts["b"]},
        {"a": [9]},
        {"c": prompts["c"], "a": [4], "b": [11]},
        *[{"a": [3 + step], "b": [50 + step], "c": [90 + step]} for step in range(12)],
        {"c": [7], "b": [8]},
    ]
    for work in works:
        expected, logits = (run.step(work) for run in runs)
        for name in work:
            torch.testing.assert_close(logits[name], expected[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", DECODERS)
def test_it_computes_what_its_layers_compute(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path)
    assert_same_crowd(model, compiled(model))


def test_logits_that_are_nan_are_those_of_their_row_alone(tmp_path: Path) -> None:
    model = saved("llama", tmp_path)
    broken = 7
    with torch.no_grad():
        model.embedding.table.weight[broken] = torch.nan
    runs = PagedRun(model), PagedRun(compiled(model))
    for work in (
        {"broken": [broken] * 20, "a": [3] * 40, "b": [4] * 5},
        {"broken": [5], "a": [6], "b": [8]},
        {"a": [9], "b": [11]},
    ):
        expected, logits = (run.step(work) for run in runs)
        for name in work:
            assert bool(logits[name].isnan().any()) == (name == "broken")
            if name != "broken":
                torch.testing.assert_close(logits[name], expected[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("window", [None, 100])
def test_long_sequences_attend_in_units_beside_short_ones(window: int | None, tmp_path: Path) -> None:
    prefix, settings = FAMILIES["mistral"]
    changed = settings | {"max_position_embeddings": 512, "sliding_window": window}
    reference_model(prefix, changed).save_pretrained(tmp_path)
    model = load(tmp_path)
    runs = PagedRun(model), PagedRun(compiled(model))
    for work in [{"long": tokens(300, 0)}, {"short": tokens(20, 1)}, {"long": [5], "short": [6]}, {"short": [7], "long": [8]}]:
        expected, logits = (run.step(work) for run in runs)
        for name in work:
            torch.testing.assert_close(logits[name], expected[name], atol=1e-4, rtol=0)


def test_packed_weights_multiply_few_rows_and_expanded_ones_more() -> None:
    checkpoint = resolve("demo")
    model = load_model(checkpoint, read_arch(checkpoint.config), dtype=torch.bfloat16, device="cpu")
    runs = PagedRun(model), PagedRun(compiled(model))
    names = [f"sequence {index}" for index in range(6)]
    for work in [{name: tokens(20, index) for index, name in enumerate(names)}, {names[0]: [5]}, {name: [7] for name in names}]:
        expected, logits = (run.step(work) for run in runs)
        for name in work:
            # Rounding to bf16, 30 layers deep.
            assert (logits[name] - expected[name]).norm() < 3e-2 * expected[name].norm()


@pytest.mark.parametrize("family", FAMILIES)
def test_layers_can_be_compiled_when_all_that_they_are_made_of_can(family: str, tmp_path: Path) -> None:
    assert can_compile(saved(family, tmp_path)) == (family in DECODERS)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "family", ["llama", "qwen3", "phi3-partial", "smollm3", "gemma2", "gemma3", "glm4", "hunyuan", "ministral3", "olmo3"]
)
def test_compiled_pieces_compute_what_its_layers_compute(family: str, tmp_path: Path) -> None:
    model, library = saved(family, tmp_path / "model"), tmp_path / "library"
    shapes, build = layer_shapes(model, BLOCK_SIZE), this_build()
    assert load_layer(shapes[0], library, build) is None
    for shape, layer in dict(zip(shapes, model.layers, strict=True)).items():
        compile_layer(layer, shape, library, build)
    assert_same_crowd(model, compiled(model, library))

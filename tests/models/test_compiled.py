"""A compiled decoder computes what its layers compute. The pieces run uncompiled here, but for the slow tests."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from streamserve.models.compiled import CompiledDecoder, layer_shape
from streamserve.models.decoder import Decoder
from streamserve.models.model import CausalModel
from streamserve_kernels.inductor.compiler import compile_layer
from streamserve_kernels.inductor.pieces import DecodeAttention, Gate, LayerShape, Norm, RotaryWrite
from streamserve_kernels.inductor.store import LayerKernels, load_layer
from tests.models.families import FAMILIES, load, reference_model
from tests.models.paged import BLOCK_SIZE, PagedRun

DECODERS = [name for name, (prefix, _) in FAMILIES.items() if prefix not in ("Gemma3", "OPT")]


def saved(family: str, folder: Path) -> CausalModel:
    reference_model(*FAMILIES[family]).save_pretrained(folder)
    return load(folder)


def compiled(model: CausalModel, kernels: LayerKernels | None = None) -> CompiledDecoder:
    assert isinstance(model, Decoder)
    shape = layer_shape(model.arch, torch.float32, BLOCK_SIZE)
    assert shape is not None
    return CompiledDecoder(model, kernels or eager_kernels(shape))


def eager_kernels(shape: LayerShape) -> LayerKernels:
    """The pieces as torch runs them uncompiled."""
    return LayerKernels(shape, Norm(shape), Gate(shape), RotaryWrite(shape), DecodeAttention(shape))


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


def test_sequences_of_unlike_lengths_attend_in_groups(tmp_path: Path) -> None:
    prefix, settings = FAMILIES["mistral"]
    reference_model(prefix, settings | {"max_position_embeddings": 512}).save_pretrained(tmp_path)
    model = load(tmp_path)
    runs = PagedRun(model), PagedRun(compiled(model))
    for work in [{"long": tokens(300, 0)}, {"short": tokens(20, 1)}, {"long": [5], "short": [6]}, {"short": [7], "long": [8]}]:
        expected, logits = (run.step(work) for run in runs)
        for name in work:
            torch.testing.assert_close(logits[name], expected[name], atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["gemma3", "opt"])
def test_other_families_have_no_compiled_pieces(family: str, tmp_path: Path) -> None:
    assert layer_shape(saved(family, tmp_path).arch, torch.float32, BLOCK_SIZE) is None


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3-partial"])
def test_compiled_pieces_compute_what_its_layers_compute(family: str, tmp_path: Path) -> None:
    model = saved(family, tmp_path / "model")
    shape = layer_shape(model.arch, torch.float32, BLOCK_SIZE)
    assert shape is not None
    assert load_layer(shape, tmp_path / "library") is None
    compile_layer(shape, tmp_path / "library")
    kernels = load_layer(shape, tmp_path / "library")
    assert kernels is not None
    assert_same_crowd(model, compiled(model, kernels))

"""Compiled layers are found again only by what they were compiled for."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

import streamserve
import streamserve_kernels
from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.models.aot import build as builds
from streamserve.models.aot.build import TRACED_SOURCES, Build, digest, this_build
from streamserve.models.aot.examples import example, rows_of
from streamserve.models.aot.marks import has_compiled_layers, mark_compiled
from streamserve.models.aot.pieces import piece_names, trace_piece
from streamserve.models.aot.shape import LayerShape, layer_shapes
from streamserve.models.aot.store import folder_of
from streamserve.models.architectures.base import CausalModel
from streamserve.models.registry import read_arch
from streamserve.models.weights.loader import load_model
from tests.models.families import FAMILIES, SHAPE, load, reference_model
from tests.models.gguf_files import write_gguf

PACKAGE = Path(streamserve.__file__).parent
KERNELS = Path(streamserve_kernels.__file__).parent
LIBRARY = Path("library")
BUILD = Build("2.13.0", "x86_64 flags", "sources")


def llama(tmp_path: Path) -> CausalModel:
    reference_model(*FAMILIES["llama"]).save_pretrained(tmp_path)
    return load(tmp_path)


def test_another_torch_another_cpu_and_other_sources_have_another_folder(tmp_path: Path) -> None:
    shape = layer_shapes(llama(tmp_path), 16)[0]
    others = [BUILD._replace(torch="2.12.1"), BUILD._replace(cpu="x86_64 fewer flags"), BUILD._replace(sources="changed")]
    folders = {folder_of(shape, LIBRARY, build) for build in (BUILD, *others)}
    assert len(folders) == 4
    assert folder_of(shape, LIBRARY, BUILD) == folder_of(replace(shape), LIBRARY, BUILD._replace())


def test_this_build_names_the_torch_that_runs_here() -> None:
    assert this_build().torch == torch.__version__


def test_another_shape_or_setting_has_another_folder(tmp_path: Path) -> None:
    shape = layer_shapes(llama(tmp_path), 16)[0]
    linear = dict(shape.parts)["qkv"]
    others: list[LayerShape] = [
        replace(shape, kind="another.Layer"),
        replace(shape, dtype="bfloat16"),
        replace(shape, settings=(("mlp.activation", "gelu_tanh"),)),
        replace(shape, attention=replace(shape.attention, scale=0.5)),
        replace(shape, parts=(("qkv", replace(linear, bias=True)), *shape.parts[1:])),  # type: ignore[type-var]
    ]
    assert len({folder_of(each, LIBRARY, BUILD) for each in (shape, *others)}) == 6


def test_layers_of_a_model_share_their_folder_whatever_their_windows(tmp_path: Path) -> None:
    prefix, settings = FAMILIES["qwen2-windowed"]
    reference_model(prefix, settings).save_pretrained(tmp_path)
    model = load(tmp_path)
    assert len({layer.attention.scoring.window for layer in model.layers}) == 2
    assert len(set(layer_shapes(model, 16))) == 1


def covered() -> list[Path]:
    return [*(PACKAGE / folder for folder in TRACED_SOURCES), KERNELS / "reference"]


def test_a_change_of_any_source_is_a_change_of_the_digest(tmp_path: Path) -> None:
    folders = []
    for index, folder in enumerate(covered()):
        folders.append(tmp_path / str(index) / folder.name)
        shutil.copytree(folder, folders[-1], ignore=shutil.ignore_patterns("__pycache__"))
    assert digest(folders) == digest(covered()) == this_build().sources
    seen = {digest(folders)}
    files = [file for folder in folders for file in folder.rglob("*.py")]
    assert {"linear.py", "decoder.py", "pieces.py", "dense.py", "lowerings.py", "int4.py"} <= {file.name for file in files}
    for file in files:
        file.write_text(file.read_text() + "# changed\n")
        seen.add(digest(folders))
    assert len(seen) == len(files) + 1


def files_run(run: Callable[[], object]) -> set[Path]:
    """Our files whose functions are called."""
    files: set[Path] = set()

    def see(frame: FrameType, event: str, argument: object) -> None:
        path = Path(frame.f_code.co_filename)
        if event == "call" and (PACKAGE in path.parents or KERNELS in path.parents):
            files.add(path)

    sys.setprofile(see)
    try:
        run()
    finally:
        sys.setprofile(None)
    return files


@pytest.mark.parametrize("family", ["llama-biased", "qwen3", "gemma3", "packed"])
def test_what_runs_while_a_layer_is_traced_is_covered_by_the_digest(family: str, tmp_path: Path) -> None:
    if family == "packed":
        settings = SHAPE | {"vocab_size": 208, "hidden_size": 128, "intermediate_size": 160, "num_attention_heads": 4}
        write_gguf(reference_model("Llama", settings), tmp_path / "model.gguf", Kind.Q4_0, embedding_kind=Kind.Q8_0)
        checkpoint = resolve(str(tmp_path / "model.gguf"))
        model = load_model(checkpoint, read_arch(checkpoint.config), dtype=torch.bfloat16, device="cpu")
    else:
        reference_model(*FAMILIES[family]).save_pretrained(tmp_path)
        model = load(tmp_path)
    shape = layer_shapes(model, 16)[0]

    def trace() -> None:
        for name in piece_names(shape):
            piece = trace_piece(name, model.layers[0], shape)
            case = example(name, piece, shape, rows_of(name))
            piece(*case.arguments, case.weights)

    with torch.inference_mode():
        files = files_run(trace)
    assert PACKAGE / "models" / "architectures" / "decoder.py" in files
    assert [file for file in files if not any(folder in file.parents for folder in covered())] == []


def test_a_mark_holds_for_the_model_and_the_settings_that_were_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, library = tmp_path / "model", tmp_path / "library"
    llama(folder)
    config, checkpoint = EngineConfig(model=str(folder), device="cpu"), resolve(str(folder))
    mark_compiled(config, checkpoint, library)
    assert not has_compiled_layers(config, checkpoint, library), "there is no library yet"
    library.mkdir()
    mark_compiled(config, checkpoint, library)
    assert has_compiled_layers(config, checkpoint, library)
    for changes in ({"block_size": 32}, {"dtype": "float32"}, {"quantization": "none"}, {"enforce_eager": True}):
        other = EngineConfig(**({"model": str(folder), "device": "cpu"} | changes))  # type: ignore[arg-type]
        assert not has_compiled_layers(other, checkpoint, library), changes
    changed = replace(checkpoint, config=checkpoint.config | {"hidden_size": 1})
    assert not has_compiled_layers(config, changed, library)
    monkeypatch.setattr(builds, "version", lambda package: "0.0")
    assert not has_compiled_layers(config, checkpoint, library)


def test_marks_are_read_without_torch() -> None:
    code = "import sys, streamserve.models.aot.marks; print('torch' in sys.modules, 'numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]

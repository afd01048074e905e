"""Compiled layers are made by a command, and only where they are of use."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from streamserve.checkpoint.names import resolve
from streamserve.cli import run
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.models.aot.build import this_build
from streamserve.models.aot.marks import has_compiled_layers
from streamserve.models.aot.pieces import piece_names
from streamserve.models.aot.shape import layer_shapes
from streamserve.models.aot.store import folder_of
from streamserve.models.registry import read_arch
from streamserve.models.weights.loader import load_model
from streamserve.process.cache import compiled_layers
from streamserve.worker.runner import Runner
from streamserve.worker.startup.compiled_layers import compile_for
from tests.models.families import FAMILIES, reference_model
from tests.support.tiny_model import TinyLlama


def test_an_engine_says_whether_its_layers_are_compiled(tiny: TinyLlama, tmp_path: Path) -> None:
    reference_model(*FAMILIES["opt"]).save_pretrained(tmp_path)
    config = {"device": "cpu", "dtype": "float32", "kv_cache_memory": 1 << 20}
    for model, compiled in ((tiny.path, False), (str(tmp_path), None)):
        assert Runner(EngineConfig(model=model, **config), resolve(model)).load().compiled is compiled


def test_layers_without_compiled_pieces_are_refused_by_name(tmp_path: Path) -> None:
    reference_model(*FAMILIES["opt"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="OPTForCausalLM"):
        compile_for(EngineConfig(model=str(tmp_path), device="cpu"), resolve(str(tmp_path)))


def test_without_a_compiler_one_line_says_what_to_install(
    tiny: TinyLlama, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert run(["compile", tiny.path, "--device", "cpu"]) == 2
    assert capsys.readouterr().err.strip() == "error: no C++ compiler is on the PATH: install one of g++, clang++"
    assert not compiled_layers().exists()


def test_options_that_change_nothing_about_layers_are_refused(tiny: TinyLlama, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compile", tiny.path, "--max-num-seqs", "4"]) == 2
    assert "--max-num-seqs" in capsys.readouterr().err


def test_layers_that_can_not_be_loaded_say_what_to_delete(
    tiny: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    config = EngineConfig(model=tiny.path, device="cpu", dtype="float32", kv_cache_memory=1 << 20)
    checkpoint = resolve(tiny.path)
    model = load_model(checkpoint, read_arch(checkpoint.config), dtype=torch.float32, device="cpu")
    for shape in set(layer_shapes(model, config.block_size)):
        folder = folder_of(shape, compiled_layers(), this_build())
        folder.mkdir(parents=True)
        for name in piece_names(shape):
            (folder / f"{name}.pt2").write_bytes(b"half of a file")
    with pytest.raises(ConfigError, match=str(tmp_path)):
        Runner(config, resolve(tiny.path)).load()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_the_command_compiled_is_used_unless_eager_is_asked_for(
    tiny: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    flags = ["--device", "cpu", "--dtype", "float32", "--block-size", "32"]
    assert run(["compile", tiny.path, *flags]) == 0
    assert str(tmp_path) in capsys.readouterr().err
    config = {"model": tiny.path, "device": "cpu", "dtype": "float32", "kv_cache_memory": 1 << 20}
    for changes, compiled in (({"block_size": 32}, True), ({}, False), ({"block_size": 32, "enforce_eager": True}, False)):
        settings = EngineConfig(**config, **changes)
        assert Runner(settings, resolve(tiny.path)).load().compiled is compiled
        assert has_compiled_layers(settings, resolve(tiny.path), compiled_layers()) is compiled
    same = EngineConfig(**config, block_size=32, quantization="none")
    assert not has_compiled_layers(same, resolve(tiny.path), compiled_layers()), "not compiled for this setting yet"
    Runner(same, resolve(tiny.path)).load()
    assert has_compiled_layers(same, resolve(tiny.path), compiled_layers()), "an engine that runs them leaves a mark"

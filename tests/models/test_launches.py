"""How many kernels a layer launches: what is fused must stay so."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

import streamserve.models
from tests.models.families import FAMILIES, load, reference_model
from tests.models.launches import FUSED, launches
from tests.models.paged import PagedRun

MODELS = Path(streamserve.models.__file__).parent

BIASED_GATE = ["norm_linear", "rotary_attention", "linear_residual", "norm_linear", "gated_activation", "linear_residual"]
POST_NORMED = [
    *("norm_linear", "rotary_attention", "linear", "rms_norm_residual"),
    *("norm_gated_linear", "linear", "rms_norm_residual"),
]
LAYER_NORMED = ["layer_norm", "linear", "rotary_attention", "linear_residual", "layer_norm", "linear", "linear_residual"]

AFTER_NORMED = [
    *("linear", "norm_all_heads_", "rotary_attention", "linear", "rms_norm_residual"),
    *("linear", "gated_activation", "linear", "rms_norm_residual"),
]
MIXTURE = ["norm_linear", "rotary_attention", "linear_residual", "norm_route", "experts_residual"]
SHARED = [*MIXTURE[:4], "norm_gated_linear", "linear", "linear_residual", "experts_residual"]

LAYERS = {
    "llama": FUSED,
    "llama-biased": BIASED_GATE,
    "qwen2": FUSED,
    "qwen3": FUSED,
    "phi3": FUSED,
    "smollm3": FUSED,
    "granite": FUSED,
    "olmo2": AFTER_NORMED,
    "glm": FUSED,
    "glm4": POST_NORMED,
    "ernie": FUSED,
    "hunyuan": FUSED,
    "ministral3": FUSED,
    "gemma2": POST_NORMED,
    "mixtral": MIXTURE,
    "qwen2-moe": SHARED,
    "qwen3-moe": MIXTURE,
    "granite-moe": MIXTURE,
    "gpt-oss": MIXTURE,
    "gemma3": POST_NORMED,
    "opt": LAYER_NORMED,
}


@pytest.mark.parametrize("family", LAYERS)
@pytest.mark.parametrize("prompt", [[7], [5, 6, 7, 8]])
def test_a_layer_launches_as_many_kernels_as_it_always_did(family: str, prompt: list[int], tmp_path: Path) -> None:
    reference_model(*FAMILIES[family]).save_pretrained(tmp_path)
    run = PagedRun(load(tmp_path))
    called = launches(lambda: run.step({"a": prompt}))
    head = ["layer_norm", "linear"] if family == "opt" else ["norm_linear"]
    assert called == LAYERS[family] * run.model.arch.num_layers + head


class Watch(TorchFunctionMode):
    """Names what models ask of torch itself, past the kernels: each would be one more launch."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if MODELS in Path(sys._getframe(1).f_code.co_filename).parents:
            self.seen.append(function.__name__)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "granite", "olmo2", "qwen3-moe", "gemma3"])
def test_around_attention_nothing_is_left_to_torch(family: str, tmp_path: Path) -> None:
    reference_model(*FAMILIES[family]).save_pretrained(tmp_path)
    model = load(tmp_path)
    hidden, attended = torch.randn(3, model.arch.hidden_size), torch.randn(3, model.arch.q_heads * model.arch.head_dim)
    with torch.inference_mode(), Watch() as watch:
        model.layers[0].before_attention(hidden)
        model.layers[0].after_attention(hidden, attended)
    assert watch.seen == []

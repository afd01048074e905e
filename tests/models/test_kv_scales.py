"""Checkpoints with the scales of a KV cache: under which names they are found, what they do, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from streamserve.checkpoint.names import resolve
from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.architectures.base import CausalModel
from streamserve.models.implementation import describe
from streamserve.models.weights.kv_scales import LayerKvScales
from streamserve.models.weights.loader import load_model
from streamserve.models.weights.schemes.kv_cache import stores_eight_bit_kv
from streamserve.worker.startup.resolved_settings import resolve_kv_cache_dtype
from streamserve_kernels import KvScales
from tests.models.families import SHAPE, prompt_of, reference_model
from tests.models.paged import PagedRun

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
SCHEME = {"type": "float", "num_bits": 8, "strategy": "tensor", "symmetric": True, "dynamic": False}
NAMES: list[dict[str, float]] = [
    {"k_scale": 0.5, "v_scale": 0.125},
    {"k_proj.k_scale": 0.5, "v_proj.v_scale": 0.125},
    {"k_proj.output_scale": 0.5, "v_proj.output_scale": 0.125, "q_scale": 9.0},
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plain")
    reference_model("Llama", SHAPE).save_pretrained(folder)
    return folder


def with_scales(plain: Path, folder: Path, scales: dict[str, float], shape: tuple[int, ...] = ()) -> Path:
    """A copy of the checkpoint with these tensors for each layer's attention."""
    tensors = load_file(plain / "model.safetensors")
    for layer in range(SHAPE["num_hidden_layers"]):
        tensors |= {f"model.layers.{layer}.self_attn.{end}": torch.full(shape, scale) for end, scale in scales.items()}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text((plain / "config.json").read_text())
    return folder


def load(folder: Path, kv_dtype: torch.dtype | None, *, model_impl: Any = "auto") -> CausalModel:
    checkpoint = resolve(str(folder))
    arch = describe(checkpoint.config, model_impl)
    return load_model(checkpoint, arch, dtype=torch.float32, device="cpu", kv_dtype=kv_dtype)


def scales_of(model: CausalModel) -> list[KvScales]:
    return [module.scales for module in model.modules() if isinstance(module, LayerKvScales)]


@pytest.mark.parametrize("names", NAMES)
def test_scales_are_found_under_the_names_that_tools_write(plain: Path, tmp_path: Path, names: dict[str, float]) -> None:
    model = load(with_scales(plain, tmp_path, names, (1,)), E4M3)
    assert scales_of(model) == [KvScales(0.5, 0.125)] * SHAPE["num_hidden_layers"]


@pytest.mark.parametrize("names", [{"kv_scale": 0.25}, {"k_scale": 0.25}])
def test_one_scale_is_of_keys_and_values(plain: Path, tmp_path: Path, names: dict[str, float]) -> None:
    assert set(scales_of(load(with_scales(plain, tmp_path, names), E4M3))) == {KvScales(0.25, 0.25)}


def test_scales_are_passed_over_where_the_cache_is_not_of_eight_bits(plain: Path, tmp_path: Path) -> None:
    assert scales_of(load(with_scales(plain, tmp_path, NAMES[0]), None)) == []


@pytest.mark.parametrize("model_impl", ["streamserve", "transformers"])
def test_a_scale_brings_keys_and_values_into_range(plain: Path, tmp_path: Path, model_impl: str) -> None:
    tokens = prompt_of(20)
    whole = PagedRun(load(plain, None)).step({"a": tokens})["a"].log_softmax(-1)

    def divergence(folder: Path) -> float:
        run = PagedRun(load(folder, E4M3, model_impl=model_impl), kv_dtype=E4M3)
        run.step({"a": tokens[:12]})
        rounded = torch.cat([run.step({"a": [token]})["a"] for token in tokens[12:]]).log_softmax(-1)
        expected = whole[12:]
        return float((expected.exp() * (expected - rounded)).sum(-1).mean())

    # Small keys and values are all but lost without one: steps of 8-bit floats end at 2^-9.
    scaled = divergence(with_scales(plain, tmp_path, {"k_scale": 2.0**-8, "v_scale": 2.0**-8}))
    lost = divergence(with_scales(plain, tmp_path, {"k_scale": 2.0**9, "v_scale": 2.0**9}))
    assert scaled < 2e-2
    assert lost > 10 * scaled


def test_a_checkpoint_without_scales_says_so_once(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert set(scales_of(load(plain, E4M3))) == {KvScales(1.0, 1.0)}
    assert [record.getMessage() for record in caplog.records] == [
        "the checkpoint stores no scales of a KV cache of 8-bit floats: keys and values are rounded as they are"
    ]


def test_scales_for_e4m3_are_not_used_for_e5m2(plain: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"fp8_e5m2: the checkpoint stores scales .* \('model.layers.0.self_attn.k_scale'\)"):
        load(with_scales(plain, tmp_path, NAMES[0]), E5M2)


@pytest.mark.parametrize(("scale", "shape", "what"), [(0.0, (), "is 0.0: it must be above 0"), (1.0, (2,), "has shape")])
def test_scales_that_make_no_sense_are_refused(plain: Path, tmp_path: Path, scale: float, shape: Any, what: str) -> None:
    with pytest.raises(ConfigError, match=rf"k_scale' .*{what}"):
        load(with_scales(plain, tmp_path, {"k_scale": scale}, shape), E4M3)


@pytest.mark.parametrize(
    ("flag", "config", "dtype"),
    [
        ("auto", {}, torch.bfloat16),
        ("auto", {"kv_cache_scheme": None}, torch.bfloat16),
        ("auto", {"kv_cache_scheme": SCHEME}, E4M3),
        ("auto", {"kv_cache_scheme": {"dynamic": False, "num_bits": 8, "type": "float"}}, E4M3),
        ("auto", {"kv_cache_quant_algo": "FP8"}, E4M3),
        ("bfloat16", {"kv_cache_scheme": SCHEME}, torch.bfloat16),
        ("fp8", {}, E4M3),
        ("fp8_e4m3", {"kv_cache_quant_algo": "NVFP4"}, E4M3),
        ("fp8_e5m2", {}, E5M2),
    ],
)
def test_the_cache_is_what_the_flag_says_or_the_checkpoint(flag: Any, config: dict[str, Any], dtype: torch.dtype) -> None:
    assert resolve_kv_cache_dtype(flag, {"quantization_config": config}, torch.bfloat16) == dtype


@pytest.mark.parametrize(
    ("config", "what"),
    [
        ({"kv_cache_scheme": SCHEME | {"strategy": "attn_head"}}, "strategy 'attn_head'"),
        ({"kv_cache_scheme": SCHEME | {"type": "int", "dynamic": True}}, "type 'int', dynamic True"),
        ({"kv_cache_quant_algo": "NVFP4"}, "NVFP4"),
    ],
)
def test_other_caches_are_refused_by_name(config: dict[str, Any], what: str) -> None:
    with pytest.raises(ModelNotSupported, match=f"{what}, which is not supported; supported: .*--kv-cache-dtype"):
        stores_eight_bit_kv(config)


def test_sixteen_bits_must_be_those_of_the_model() -> None:
    with pytest.raises(ConfigError, match="--kv-cache-dtype float16: the model runs in bfloat16, and keeps keys and values in"):
        resolve_kv_cache_dtype("float16", {}, torch.bfloat16)


def test_a_model_with_the_flag_keeps_its_layers_uncompiled(plain: Path) -> None:
    from streamserve.models.aot.shape import can_compile

    assert can_compile(load(plain, None))
    assert not can_compile(load(plain, E4M3))


def test_config_json_is_enough(plain: Path, tmp_path: Path) -> None:
    folder = with_scales(plain, tmp_path, NAMES[0])
    config = json.loads((folder / "config.json").read_text())
    assert resolve_kv_cache_dtype("auto", config | {"quantization_config": {"kv_cache_scheme": SCHEME}}, torch.float32) == E4M3

"""What a quantization_config says of each linear, and what is refused by name."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch

from streamserve.config import Quantization
from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.layers.linear import Linear
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.awq import Awq
from streamserve.models.weights.schemes.four_bits import StoredFourBits
from streamserve.models.weights.schemes.fp8 import StoredFp8
from streamserve.models.weights.schemes.gptq import Gptq
from streamserve.models.weights.schemes.on_load import Fp8OnLoad
from streamserve.models.weights.schemes.packed import PackQuantized
from streamserve.models.weights.schemes.scheme import PLAIN, Scheme
from streamserve.models.weights.schemes.table import METHODS, read_schemes, schemes_of
from streamserve.models.weights.storage import WeightStorage

Q, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"


def tensors_group(**weights: Any) -> dict[str, Any]:
    """A config of compressed-tensors with one group of linears."""
    group = {"targets": ["Linear"], "weights": weights, "input_activations": {"dynamic": True, "num_bits": 8}}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": {"group_0": group}}


FLOATS = {"num_bits": 8, "type": "float"}

PACKED = tensors_group(num_bits=4, type="int", strategy="group", group_size=128) | {"format": "pack-quantized"}
PACKED["config_groups"]["group_0"]["input_activations"] = None

SAID: list[tuple[dict[str, Any], Scheme]] = [
    ({"quant_method": "fp8", "weight_block_size": [128, 128]}, StoredFp8("weight_scale_inv", "block")),
    ({"quant_method": "fp8", "activation_scheme": "dynamic"}, StoredFp8("weight_scale", "tensor")),
    ({"quant_method": "fp8", "activation_scheme": "static"}, StoredFp8("weight_scale", "tensor", input_scale=True)),
    ({"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0}, StoredFp8("weight_scale", "row")),
    ({"quant_method": "modelopt", "quant_algo": "FP8"}, StoredFp8("weight_scale", "tensor", input_scale=True)),
    ({"quant_method": "gptq", "bits": 4, "group_size": 128}, Gptq(128, has_zero=False, has_order=False)),
    (
        {"quant_method": "gptq", "bits": 4, "group_size": 64, "desc_act": True, "sym": False, "checkpoint_format": "gptq_v2"},
        Gptq(64, has_zero=True, has_order=True, zero_offset=0),
    ),
    ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm"}, Awq(128, has_zero=True, has_order=False)),
    (PACKED, PackQuantized(128, has_zero=False, has_order=False)),
    (tensors_group(**FLOATS, strategy="channel"), StoredFp8("weight_scale", "row")),
    (tensors_group(**FLOATS, strategy="block", block_structure=[128, 128]), StoredFp8("weight_scale", "block")),
]


def test_what_is_stored_as_numbers_is_so_whatever_a_config_of_4_bits_says() -> None:
    gate = "model.layers.0.mlp.shared_expert_gate"
    config = {"quant_method": "gptq", "bits": 4, "group_size": 128}
    for names, expected in ((frozenset(), Gptq(128, has_zero=False, has_order=False)), ({f"{gate}.weight"}, PLAIN)):
        assert schemes_of(WeightStorage(quantization_config=config, names=names))(gate) == expected
    assert schemes_of(WeightStorage(quantization_config=config, names={f"{gate}.weight"}))(Q) != PLAIN


@pytest.mark.parametrize(("config", "scheme"), SAID)
def test_every_linear_is_stored_as_the_config_says(config: dict[str, Any], scheme: Scheme) -> None:
    schemes = read_schemes(config)
    assert schemes(Q) == schemes(DOWN) == scheme
    assert config["quant_method"] == "compressed-tensors" or schemes("lm_head") == PLAIN


@pytest.mark.parametrize(
    ("method", "field", "entries"),
    [
        ("fp8", "modules_to_not_convert", ["model.layers.0.mlp.down_proj", "lm_head"]),
        ("fbgemm_fp8", "modules_to_not_convert", ["down_proj"]),
        ("awq", "modules_to_not_convert", ["down_proj"]),
        ("gptq", "dynamic", {"-:.*down_proj": {}}),
        ("modelopt", "exclude_modules", ["lm_head", "model.layers.0*"]),
        ("compressed-tensors", "ignore", ["lm_head", "re:.*down_proj$"]),
        ("compressed-tensors", "ignore", ["lm_head", "model.layers.0"]),
    ],
)
def test_modules_that_are_listed_stay_as_they_are(method: str, field: str, entries: Any) -> None:
    base = tensors_group(**FLOATS, strategy="channel") if method == "compressed-tensors" else {"quant_algo": "FP8"}
    base |= {"bits": 4, "group_size": 128} if method in ("awq", "gptq") else {}
    schemes = read_schemes({**base, "quant_method": method, field: entries})
    assert schemes(DOWN) == schemes("lm_head") == PLAIN
    assert isinstance(schemes(Q), StoredFp8 | StoredFourBits)


def test_groups_of_linears_have_schemes_of_their_own() -> None:
    weights = {**FLOATS, "strategy": "tensor"}
    groups = {
        "a": {"targets": ["re:.*self_attn.*"], "weights": weights, "input_activations": {"dynamic": False}},
        "b": {"targets": [DOWN], "weights": weights | {"strategy": "channel"}},
    }
    schemes = read_schemes({"quant_method": "compressed-tensors", "config_groups": groups})
    assert schemes(Q) == StoredFp8("weight_scale", "tensor", input_scale=True)
    assert schemes(DOWN) == StoredFp8("weight_scale", "row")
    assert schemes("model.layers.0.mlp.up_proj") == PLAIN


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"quant_method": "bitnet"}, r"method 'bitnet' is not supported; supported: .*compressed-tensors.* and .gguf files"),
        ({"quant_method": "fp8", "weight_block_size": [64, 64]}, r"blocks of \[64, 64\] .* supported: \[128, 128\]"),
        ({"quant_method": "fp8", "activation_scheme": "odd"}, "'odd' is not supported; supported: dynamic, static"),
        ({"quant_method": "gptq", "bits": 8, "group_size": 128}, "gptq weights of 8 bits are not supported; supported: 4"),
        ({"quant_method": "gptq", "bits": 4, "group_size": -1}, "gptq groups of -1 are not supported; supported: 32, 64, 128"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32, "dynamic": {"+:.*": {}}}, "settings of their own for"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemv"}, "awq version 'gemv' .*; supported: gemm"),
        ({"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": False}, "awq weights without zero points"),
        ({"quant_method": "modelopt", "quant_algo": "NVFP4"}, "quant_algo 'NVFP4' is not supported; supported: FP8"),
        (tensors_group(num_bits=8, type="int"), "'float-quantized' with 8-bit int weights is not supported; supported: float"),
        (tensors_group(**FLOATS, strategy="group"), "strategy 'group' of 8-bit weights is not supported; supported: channel"),
        ({"quant_method": "compressed-tensors", "sparsity_config": {"format": "sparse-24"}}, "sparsity 'sparse-24'"),
    ],
)
def test_what_has_no_scheme_is_refused_by_name(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelNotSupported, match=said):
        read_schemes(config)


def test_a_method_that_is_asked_for_must_be_the_checkpoints() -> None:
    stored = {"quant_method": "fbgemm_fp8"}
    for asked in ("auto", "none", "fbgemm_fp8"):
        assert isinstance(schemes_of(WeightStorage({}, stored, asked))(Q), StoredFp8)
    with pytest.raises(ConfigError, match="--quantization fp8: the checkpoint is quantized by the method 'fbgemm_fp8'"):
        schemes_of(WeightStorage({}, stored, "fp8"))
    for method in METHODS.keys() - {"fp8"}:
        with pytest.raises(ConfigError, match="the checkpoint is not quantized; leave it out, or use fp8"):
            schemes_of(WeightStorage({}, {}, method))


def test_every_method_can_be_asked_for() -> None:
    assert METHODS.keys() <= set(get_args(Quantization))


def test_rounding_while_loading_leaves_heads_and_routers_alone() -> None:
    schemes = schemes_of(WeightStorage({}, {}, "fp8"))
    assert schemes(Q) == schemes("model.layers.0.mlp.gate_proj") == Fp8OnLoad()
    assert schemes("lm_head") == schemes("model.layers.0.mlp.gate") == schemes("model.layers.0.mlp.router") == PLAIN


def test_parts_of_a_linear_that_are_stored_unlike_are_refused() -> None:
    config = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["up"]}
    place = Placement(torch.float32, torch.device("cpu"), storage=WeightStorage({}, config))
    with pytest.raises(ModelNotSupported, match=r"quantized alike: gate is 8-bit floats with a scale per row, up is not quan"):
        Linear("", {"gate": 32, "up": 32}, 64, place)

"""Whole checkpoints as tools quantize them say what the numbers say that their weights stand for."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from streamserve.checkpoint.names import resolve
from streamserve.models.architectures.base import CausalModel
from streamserve.models.registry import read_arch
from streamserve.models.weights.forms.int4 import Int4Form
from streamserve.models.weights.loader import load_model
from tests.models.families import load, prompt_of, reference_model
from tests.models.four_bit_tensors import awq, gptq
from tests.models.paged import PagedRun
from tests.models.quantized import FOUR, WIDE, Store, fp8_blocks, save_quantized

PROMPT = prompt_of(20)


def logits(model: CausalModel) -> Tensor:
    return PagedRun(model).step({"a": PROMPT})["a"].float()


WAYS: dict[str, tuple[Store, dict[str, Any]]] = {
    "fp8 in blocks": (fp8_blocks, {"quant_method": "fp8", "weight_block_size": [128, 128]}),
    "gptq": (gptq, FOUR | {"quant_method": "gptq"}),
    "gptq in act-order": (partial(gptq, act_order=True), FOUR | {"quant_method": "gptq", "desc_act": True}),
    "awq": (awq, FOUR | {"quant_method": "awq"}),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_quantized_checkpoint_says_what_its_numbers_say(way: str, tmp_path: Path) -> None:
    quantized, expanded = save_quantized(tmp_path, *WAYS[way])
    torch.testing.assert_close(logits(load(quantized)), logits(load(expanded)), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("way", WAYS)
def test_quantized_experts_say_what_their_numbers_say(way: str, tmp_path: Path) -> None:
    mixture = WIDE | {"head_dim": 32, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
    quantized, expanded = save_quantized(tmp_path, *WAYS[way], ("Qwen3Moe", mixture))
    torch.testing.assert_close(logits(load(quantized)), logits(load(expanded)), atol=1e-4, rtol=1e-4)


def test_four_bits_stay_packed_on_a_cpu(tmp_path: Path) -> None:
    quantized, expanded = save_quantized(tmp_path, *WAYS["awq"])
    checkpoint = resolve(str(quantized))
    model = load_model(checkpoint, read_arch(checkpoint.config), dtype=torch.bfloat16, device="cpu")
    assert all(isinstance(linear.form, Int4Form) for layer in model.layers for linear in (layer.qkv, layer.mlp.down))
    exact, packed = logits(load(expanded)).log_softmax(-1), logits(model).log_softmax(-1)
    assert (packed - exact).abs().mean() < 0.1
    one_by_one = PagedRun(model)
    apart = torch.cat([one_by_one.step({"a": [token]})["a"] for token in PROMPT]).float().log_softmax(-1)
    assert (apart - exact).abs().mean() < 0.1


def test_rounding_while_loading_keeps_the_head_and_little_else(tmp_path: Path) -> None:
    reference_model("Llama", WIDE).save_pretrained(tmp_path)
    checkpoint = resolve(str(tmp_path))
    arch = read_arch(checkpoint.config)
    rounded = load_model(checkpoint, arch, dtype=torch.float32, device="cpu", quantization="fp8")
    plain = load(tmp_path)
    assert torch.equal(rounded.embedding.head.form.get_parameter("weight"), plain.embedding.head.form.get_parameter("weight"))
    ours, theirs = (model.layers[0].mlp.down.form.get_parameter("weight") for model in (rounded, plain))
    assert 0 < (ours - theirs).norm() / theirs.norm() < 0.04


def test_random_weights_take_the_scheme_of_the_config(tmp_path: Path) -> None:
    for quant in ({"quant_method": "awq", **FOUR}, {"quant_method": "fp8", "activation_scheme": "static"}):
        reference_model("Llama", WIDE).config.save_pretrained(tmp_path)
        settings = json.loads((tmp_path / "config.json").read_text())
        settings |= {"quantization_config": quant, "architectures": ["LlamaForCausalLM"]}
        (tmp_path / "config.json").write_text(json.dumps(settings))
        checkpoint = resolve(str(tmp_path), load_format="dummy")
        for dtype in (torch.bfloat16, torch.float32):
            model = load_model(checkpoint, read_arch(checkpoint.config), dtype=dtype, device="cpu")
            assert logits(model).isfinite().all()
            assert logits(model).std() > 0.001


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["channel", "tensor", "group", "group with zero points"])
def test_checkpoints_of_compressed_tensors_are_read(strategy: str, tmp_path: Path) -> None:
    """Written by that package, the extra `quantized`."""
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import (
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )
    from compressed_tensors.quantization.utils import calculate_qparams

    model = reference_model("Llama", WIDE)
    if strategy.startswith("group"):
        symmetric = strategy == "group"
        weights = QuantizationArgs(num_bits=4, type="int", strategy="group", group_size=32, symmetric=symmetric)
        inputs, stored_as = None, "pack-quantized"
    else:
        weights = QuantizationArgs(num_bits=8, type="float", strategy=strategy, symmetric=True)
        inputs = QuantizationArgs(num_bits=8, type="float", strategy="token", symmetric=True, dynamic=True)
        stored_as = "float-quantized"
    scheme = QuantizationScheme(targets=["Linear"], weights=weights, input_activations=inputs)
    groups = {"group_0": scheme}
    config = QuantizationConfig(config_groups=groups, ignore=["lm_head"], format=stored_as, quantization_status="frozen")
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            weight = module.weight.detach()
            parts = {"channel": weight, "tensor": weight.flatten()}.get(strategy, weight.unflatten(1, (-1, 32)))
            scale, zero = calculate_qparams(parts.amin(-1), parts.amax(-1), weights)
            module.weight_scale.data.copy_(scale.view_as(module.weight_scale))
            if hasattr(module, "weight_zero_point"):
                module.weight_zero_point.data.copy_(zero.view_as(module.weight_zero_point))
    compressor = ModelCompressor.from_pretrained_model(model)
    compressor.compress_model(model)
    model.save_pretrained(tmp_path)
    compressor.update_config(tmp_path)
    ours = logits(load(tmp_path))
    compressor.decompress_model(model)
    for module in model.modules():
        # What they stand for, without rounding what is multiplied.
        module.quantization_enabled = False
    with torch.inference_mode():
        expected = model(torch.tensor([PROMPT])).logits[0]
    torch.testing.assert_close(ours, expected, atol=1e-3, rtol=1e-3)

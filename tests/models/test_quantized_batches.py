"""Models of every scheme, in the forms that a GPU keeps, say what their numbers say, alone and in every kind of batch.

References multiply what the forms keep, in fp32; tests/kernels compares the kernels with those.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamserve.checkpoint.names import resolve
from streamserve.models.architectures.base import CausalModel
from streamserve.models.layers.experts import Experts
from streamserve.models.registry import read_arch
from streamserve.models.weights.experts import four_bits as four_bit_experts
from streamserve.models.weights.experts import fp8 as fp8_experts
from streamserve.models.weights.experts import mxfp4 as mxfp4_experts
from streamserve.models.weights.experts.dense import DenseExperts
from streamserve.models.weights.forms import four_bits
from streamserve.models.weights.forms.expanded import QuantizedForm
from streamserve.models.weights.loader import load_model
from streamserve.models.weights.schemes import fp8
from streamserve_kernels import Fp8Weight, dequantize_fp8, quantize_fp8_rows
from tests.models.families import GPT_OSS, SHAPE, load, prompt_of, reference_model
from tests.models.four_bit_tensors import awq, gptq, pack_quantized
from tests.models.paged import PagedRun
from tests.models.quantized import FOUR, WIDE, Store, fp8_blocks, packed, save_quantized

pytestmark = pytest.mark.slow

MIXTURE = WIDE | {"head_dim": 32, "num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 128}
SHARED = {"shared_expert_intermediate_size": 128, "decoder_sparse_step": 1}
PROMPT, OTHER, COUNT = prompt_of(21), prompt_of(9), 5


def eight_bits(rows: int, columns: int, per: str) -> tuple[dict[str, Tensor], Tensor]:
    weight, scale = torch.randn(rows, columns).to(torch.float8_e4m3fn), torch.rand(rows if per == "row" else 1, 1) / 16 + 0.01
    stored = {"weight": weight, "weight_scale": scale if per == "row" else scale[0, 0]}
    return stored | ({} if per == "row" else {"input_scale": torch.tensor(0.1)}), weight.double() * scale.double()


PACK = {"type": "int", "num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}
COMPRESSED = {
    "quant_method": "compressed-tensors", "format": "pack-quantized",
    "config_groups": {"all": {"targets": ["Linear"], "weights": PACK}}, "ignore": ["lm_head", "re:.*mlp.gate$"],
}  # fmt: skip
BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
ROWS = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["lm_head"]}
WAYS: dict[str, tuple[Store, dict[str, Any], tuple[str, dict[str, Any]]]] = {
    "fp8 in blocks": (fp8_blocks, BLOCKS, ("Llama", WIDE)),
    "fp8 by rows": (partial(eight_bits, per="row"), ROWS, ("Llama", WIDE)),
    "fp8 by tensors": (partial(eight_bits, per="tensor"), {"quant_method": "modelopt", "quant_algo": "FP8"}, ("Llama", WIDE)),
    "gptq in act-order": (partial(gptq, act_order=True), FOUR | {"quant_method": "gptq", "desc_act": True}, ("Llama", WIDE)),
    "awq": (awq, FOUR | {"quant_method": "awq"}, ("Llama", WIDE)),
    "compressed-tensors": (partial(pack_quantized, symmetric=False), COMPRESSED, ("Llama", WIDE)),
    "experts in fp8 blocks": (fp8_blocks, BLOCKS, ("Qwen3Moe", MIXTURE)),
    "experts in fp8 by rows": (partial(eight_bits, per="row"), ROWS, ("Qwen3Moe", MIXTURE)),
    "experts of gptq, and one of all": (gptq, FOUR | {"quant_method": "gptq"}, ("Qwen2Moe", MIXTURE | SHARED)),
    "experts of awq": (awq, FOUR | {"quant_method": "awq"}, ("Qwen3Moe", MIXTURE)),
    "experts of compressed-tensors": (partial(pack_quantized, symmetric=False), COMPRESSED, ("Qwen3Moe", MIXTURE)),
}


@pytest.fixture(autouse=True)
def _kept_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (fp8, fp8_experts):
        monkeypatch.setattr(module, "can_keep_fp8", lambda dtype, device: True)
    for module in (four_bits, four_bit_experts):
        monkeypatch.setattr(module, "can_keep_grouped", lambda dtype, device: True)
    monkeypatch.setattr(mxfp4_experts, "can_keep_mxfp4", lambda dtype, device: True)


def loaded(folder: Path, **options: Any) -> CausalModel:
    checkpoint = resolve(str(folder))
    return load_model(checkpoint, read_arch(checkpoint.config), dtype=torch.float32, device="cpu", **options)


def assert_alike_in_every_batch(model: CausalModel, expected: Tensor) -> None:
    """expected  logits of the prompt"""
    run = PagedRun(model)
    together = run.step({"a": PROMPT, "b": OTHER})
    torch.testing.assert_close(together["a"], expected, atol=2e-4, rtol=2e-4)
    tokens, last = [], together
    for _ in range(COUNT):
        tokens.append(int(last["a"][-1].argmax()))
        last = run.step({"a": tokens[-1:], "b": [int(last["b"][-1].argmax())]})
    assert PagedRun(model).greedy("alone", PROMPT, COUNT) == tokens
    for first in (PROMPT[:7], PROMPT[7:16]):
        run.step({"in chunks": first})
    assert run.greedy("in chunks", PROMPT[16:], COUNT) == tokens
    assert run.greedy("preempted", PROMPT + tokens[:2], COUNT - 2) == tokens[2:]
    run.fork("prefix", "a", 16)
    assert run.greedy("prefix", PROMPT[16:], COUNT) == tokens


@pytest.mark.parametrize("way", WAYS)
def test_a_scheme_is_the_same_in_every_batch(way: str, tmp_path: Path) -> None:
    store, config, model = WAYS[way]
    quantized, expanded = save_quantized(tmp_path, store, config, model)
    kept = loaded(quantized)
    assert all(isinstance(linear.form, QuantizedForm) for layer in kept.layers for linear in (layer.qkv, layer.output))
    assert not any(isinstance(module, DenseExperts) for module in kept.modules())
    assert_alike_in_every_batch(kept, PagedRun(load(expanded)).step({"a": PROMPT})["a"])


@pytest.mark.parametrize("model", [("Llama", WIDE), ("Qwen3Moe", MIXTURE)])
def test_what_is_rounded_while_loading_is_the_same_in_every_batch(model: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    plain, rounded = tmp_path / "plain", tmp_path / "rounded"
    for folder in (plain, rounded):
        reference_model(*model).save_pretrained(folder)
    tensors = load_file(rounded / "model.safetensors")
    for name in [name for name in tensors if name.endswith("proj.weight")]:
        tensors[name] = dequantize_fp8(Fp8Weight(*quantize_fp8_rows(tensors[name])))
    save_file(tensors, rounded / "model.safetensors")
    assert_alike_in_every_batch(loaded(plain, quantization="fp8"), PagedRun(load(rounded)).step({"a": PROMPT})["a"])


def test_mxfp4_is_the_same_in_every_batch(tmp_path: Path) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 96, "num_attention_heads": 4}
    reference = reference_model("GptOss", SHAPE | GPT_OSS | sizes)
    stored = dict(reference.state_dict())
    for name in [name for name in stored if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
        rows = values[torch.randint(8, stored[name].mT.shape)] / 16
        stored[name].copy_(rows.mT)
        del stored[name]
        stored[f"{name}_blocks"], stored[f"{name}_scales"] = packed(rows)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, tmp_path / "model.safetensors")
    config = {"architectures": ["GptOssForCausalLM"], "quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(reference.config.to_dict() | config))
    kept = loaded(tmp_path)
    forms = [module.form for module in kept.modules() if isinstance(module, Experts)]
    assert forms
    assert all(isinstance(form, mxfp4_experts.Mxfp4Experts) for form in forms)
    with torch.inference_mode():
        expected = reference(torch.tensor([PROMPT])).logits[0]
    assert_alike_in_every_batch(kept, expected)

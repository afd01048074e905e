"""Experts come out of a checkpoint however it stores them, whole or in the shares of ranks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from streamserve.checkpoint.names import resolve
from streamserve.errors import ConfigError
from streamserve.models.arch import ModelArch
from streamserve.models.architectures.base import CausalModel
from streamserve.models.communicator import Apart
from streamserve.models.layers.experts import Experts, Router
from streamserve.models.mixture import ExpertTensors, Mixture
from streamserve.models.registry import read_arch
from streamserve.models.weights.experts import four_bits as four_bit_experts
from streamserve.models.weights.experts.choose import make_experts
from streamserve.models.weights.experts.dense import DenseExperts
from streamserve.models.weights.experts.form import ExpertsForm
from streamserve.models.weights.experts.four_bits import FourBitExperts
from streamserve.models.weights.experts.fp8 import Fp8Experts
from streamserve.models.weights.experts.mxfp4 import Mxfp4Experts
from streamserve.models.weights.experts.spec import ExpertsSpec
from streamserve.models.weights.loader import load_model
from streamserve.models.weights.noise import random_words
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.table import schemes_of
from streamserve.models.weights.storage import WeightStorage
from streamserve_kernels import Routes, RoutingRule, quantize_fp8_rows
from tests.models.families import EXPERTS, GLM4_MOE, GPT_OSS, SHAPE, TOLERANCE, load, prompt_of, reference_model
from tests.models.four_bit_tensors import awq_tensors, gptq_tensors
from tests.models.paged import PagedRun
from tests.models.quantized import packed
from tests.models.stored import MadeUp

COUNT, HIDDEN, INNER = 4, 64, 96
PREFIX = "mlp."
Stored = dict[str, Tensor]


class Numbers:
    """The weights and biases of some experts, as every checkpoint below stores them."""

    def __init__(self, inner: int = INNER) -> None:
        # What four bits with a scale of two can say, so that every way to store them says the same.
        values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
        self.gate, self.up = (values[torch.randint(8, (COUNT, inner, HIDDEN))] / 16 for _ in range(2))
        self.down = values[torch.randint(8, (COUNT, HIDDEN, inner))] / 16
        self.gate_bias, self.up_bias, self.down_bias = (
            torch.randn(COUNT, inner),
            torch.randn(COUNT, inner),
            torch.randn(COUNT, HIDDEN),
        )

    @property
    def inner(self) -> int:
        return self.gate.shape[1]


def interleaved(gate: Tensor, up: Tensor) -> Tensor:
    return torch.stack([gate, up], dim=2).flatten(1, 2)


def per_expert(of: Numbers) -> Stored:
    parts = {"gate_proj": (of.gate, of.gate_bias), "up_proj": (of.up, of.up_bias), "down_proj": (of.down, of.down_bias)}
    stored = {}
    for name, (weights, biases) in parts.items():
        for expert in range(COUNT):
            stored[f"experts.{expert}.{name}.weight"] = weights[expert]
            stored[f"experts.{expert}.{name}.bias"] = biases[expert]
    return stored


def halves(of: Numbers) -> Stored:
    return {
        "experts.gate_up_proj": torch.cat([of.gate, of.up], dim=1),
        "experts.gate_up_proj_bias": torch.cat([of.gate_bias, of.up_bias], dim=1),
        "experts.down_proj": of.down,
        "experts.down_proj_bias": of.down_bias,
    }


def turns_transposed(of: Numbers) -> Stored:
    return {
        "experts.gate_up_proj": interleaved(of.gate, of.up).mT.contiguous(),
        "experts.gate_up_proj_bias": interleaved(of.gate_bias.unsqueeze(2), of.up_bias.unsqueeze(2)).squeeze(2),
        "experts.down_proj": of.down.mT.contiguous(),
        "experts.down_proj_bias": of.down_bias,
    }


def apart(of: Numbers) -> Stored:
    return {
        "experts.gate_proj.weight": of.gate,
        "experts.gate_proj.bias": of.gate_bias,
        "experts.up_proj.weight": of.up,
        "experts.up_proj.bias": of.up_bias,
        "experts.down_proj.weight": of.down,
        "experts.down_proj.bias": of.down_bias,
    }


def blocks(of: Numbers) -> Stored:
    turns = turns_transposed(of)
    gate_up, gate_up_scales = packed(interleaved(of.gate, of.up))
    down, down_scales = packed(of.down)
    biases = {name: value for name, value in turns.items() if name.endswith("bias")}
    return biases | {
        "experts.gate_up_proj_blocks": gate_up,
        "experts.gate_up_proj_scales": gate_up_scales,
        "experts.down_proj_blocks": down,
        "experts.down_proj_scales": down_scales,
    }


FUSED = ("experts.gate_up_proj", "experts.gate_up_proj", "experts.down_proj")
WAYS: dict[str, tuple[ExpertTensors, Callable[[Numbers], Stored]]] = {
    "a tensor each": (
        ExpertTensors("experts.{}.gate_proj.weight", "experts.{}.up_proj.weight", "experts.{}.down_proj.weight"),
        per_expert,
    ),
    "gate before up": (ExpertTensors(*FUSED), halves),
    "in turns, transposed": (ExpertTensors(*FUSED, alternates=True, transposed=True), turns_transposed),
    "gate and up apart": (
        ExpertTensors("experts.gate_proj.weight", "experts.up_proj.weight", "experts.down_proj.weight"),
        apart,
    ),
    "in blocks": (ExpertTensors(*(f"{name}_blocks" for name in FUSED), alternates=True, mxfp4=True), blocks),
}


def eight_bits(of: Numbers, scale_name: str, scale_of: Callable[[Tensor], Tensor]) -> Stored:
    """Every weight as 8-bit floats, beside its scales."""
    stored = per_expert(of)
    for name in [name for name in stored if name.endswith("weight")]:
        weight = stored[name]
        scale = scale_of(weight)
        wide = scale if len(scale) == len(weight) else scale.repeat_interleave(128, 0)[: len(weight)].repeat_interleave(128, 1)
        stored[name] = (weight / wide[:, : weight.shape[1]]).to(torch.float8_e4m3fn)
        stored[name.removesuffix("weight") + scale_name] = scale
    return stored


def four_bits(of: Numbers, tensors_of: Callable[[Tensor, Tensor, Tensor], Stored]) -> Stored:
    """Every weight as 4-bit integers in groups of 32, of 1/32 each and zero points of 1."""
    stored = per_expert(of)
    for name in [name for name in stored if name.endswith("weight")]:
        weight = stored.pop(name)
        scale = torch.full((len(weight), weight.shape[1] // 32), 1 / 32)
        tensors = tensors_of((weight * 32).long() + 1, scale, torch.ones_like(scale).long())
        stored |= {name.removesuffix("weight") + end: tensor for end, tensor in tensors.items()}
    return stored


def in_groups(quants: Tensor, scale: Tensor, zero: Tensor) -> Stored:
    return gptq_tensors(quants, scale, zero, torch.arange(quants.shape[1]) // 32)


def of_rows(weight: Tensor) -> Tensor:
    return torch.exp2(torch.randint(-6, -2, (len(weight), 1)).float())


def of_blocks(weight: Tensor) -> Tensor:
    rows, columns = (-(-size // 128) for size in weight.shape)
    return torch.exp2(torch.randint(-6, -2, (rows, columns)).float())


def arch_of(tensors: ExpertTensors, inner: int = INNER) -> tuple[ModelArch, Mixture]:
    arch = read_arch({"architectures": ["Qwen3MoeForCausalLM"], **SHAPE, **EXPERTS, "hidden_size": HIDDEN})
    mixture = Mixture(
        num_experts=COUNT, inner_size=inner, rule=RoutingRule(2), layers=(True, True), tensors=(tensors,), biased=True
    )
    return replace(arch, mixture=mixture), mixture


@dataclass(frozen=True)
class Packed:
    """A form that keeps what a checkpoint stores, and experts that it takes.

    inner  inner size that three ranks divide where blocks are not cut
    """

    form: type[ExpertsForm]
    tensors: ExpertTensors
    store: Callable[[Numbers], Stored]
    config: dict[str, Any]
    inner: int


PACKED = {
    "8-bit floats, a scale a row": Packed(
        Fp8Experts, WAYS["a tensor each"][0], partial(eight_bits, scale_name="weight_scale", scale_of=of_rows),
        {"quant_method": "fbgemm_fp8"}, 96,
    ),
    "8-bit floats in blocks": Packed(
        Fp8Experts, WAYS["a tensor each"][0], partial(eight_bits, scale_name="weight_scale_inv", scale_of=of_blocks),
        {"quant_method": "fp8", "weight_block_size": [128, 128]}, 384,
    ),
    "GPTQ": Packed(
        FourBitExperts, WAYS["a tensor each"][0], partial(four_bits, tensors_of=in_groups),
        {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False}, 96,
    ),
    "AWQ": Packed(
        FourBitExperts, WAYS["a tensor each"][0], partial(four_bits, tensors_of=awq_tensors),
        {"quant_method": "awq", "bits": 4, "group_size": 32}, 96,
    ),
    "MXFP4": Packed(Mxfp4Experts, WAYS["in blocks"][0], blocks, {"quant_method": "mxfp4"}, 288),
}  # fmt: skip


def packed_form(
    way: Packed, numbers: Numbers, communicator: Apart | None = None, *, divides_experts: bool = False
) -> ExpertsForm:
    """Filled, on a CPU, where a reference multiplies what it keeps."""
    stored = {PREFIX + name: value for name, value in way.store(numbers).items()}
    storage = WeightStorage(quantization_config=way.config, names=stored.keys())
    ranks = communicator or Apart()
    place = Placement(torch.float32, torch.device("cpu"), ranks, storage, divides_experts=divides_experts)
    spec = ExpertsSpec.of(arch_of(way.tensors, way.inner)[1], HIDDEN, PREFIX, place)
    form = way.form(spec, place, schemes_of(storage)(next(spec.names())))
    with torch.inference_mode():
        destinations = list(form.destinations())
        assert {destination.name for destination in destinations} == stored.keys()
        for destination in destinations:
            content = MadeUp(destination.name, stored[destination.name])
            assert destination.region.is_of(content.shape)
            destination.fill(content)
        form.finish()
    return form


@pytest.mark.parametrize("ranks", ["one", "parts of each", "some each"])
@pytest.mark.parametrize("name", PACKED)
def test_experts_that_stay_packed_are_what_their_numbers_say(name: str, ranks: str) -> None:
    way = PACKED[name]
    numbers, hidden, weights = Numbers(way.inner), torch.randn(5, HIDDEN) / 4, torch.rand(5, 2)
    ids = torch.stack([torch.randperm(COUNT)[:2] for _ in range(5)]).int()
    world_size = 1 if ranks == "one" else 2 if ranks == "some each" else 3
    total = torch.zeros(5, HIDDEN)
    with torch.inference_mode():
        for rank in range(world_size):
            form = packed_form(way, numbers, Apart(rank, world_size), divides_experts=ranks == "some each")
            total = form.onto(total, Routes(hidden, ids, weights), "silu")
    torch.testing.assert_close(total.double(), expected_of(numbers, hidden, ids, weights), atol=1e-4, rtol=1e-4)


def test_blocks_that_ranks_would_cut_are_refused_by_name() -> None:
    eight, four = PACKED["8-bit floats in blocks"], PACKED["MXFP4"]
    with pytest.raises(ConfigError, match="cut its blocks of 128"):
        packed_form(eight, Numbers(eight.inner), Apart(0, 2))
    with pytest.raises(ConfigError, match=r"experts\.0\.gate_proj cut its groups of 32 columns, or words of 8"):
        packed_form(PACKED["GPTQ"], Numbers(96), Apart(0, 8))
    with pytest.raises(ConfigError, match=r"experts\.0\.down_proj cut its groups of 32 columns"):
        packed_form(PACKED["AWQ"], Numbers(96), Apart(0, 2))
    # Nine blocks of 32 for two ranks: five and four.
    shares = [packed_form(four, Numbers(four.inner), Apart(rank, 2)).spec.inner for rank in range(2)]
    assert shares == [range(160), range(160, 288)]
    with pytest.raises(ConfigError, match="too few for 8 ranks"):
        packed_form(four, Numbers(four.inner), Apart(0, 8))


def test_packed_experts_are_known_by_the_names_of_their_tensors() -> None:
    each, stacked = WAYS["a tensor each"][0], WAYS["gate before up"][0]
    for end in ("weight", "qweight", "weight_packed"):
        assert each.are_in({f"mlp.experts.0.down_proj.{end}"}, "mlp.")
        assert not stacked.are_in({f"mlp.experts.0.down_proj.{end}"}, "mlp.")


def test_experts_that_could_stay_packed_are_expanded_where_that_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(four_bit_experts, "can_keep_grouped", lambda dtype, device: True)
    way = PACKED["GPTQ"]
    for quantization, form in (("auto", FourBitExperts), ("gptq", FourBitExperts), ("none", DenseExperts)):
        place = Placement(torch.float32, torch.device("cpu"), storage=WeightStorage({}, way.config, quantization))
        spec = ExpertsSpec.of(arch_of(way.tensors)[1], HIDDEN, PREFIX, place)
        assert isinstance(make_experts(spec, place), form)


def test_random_words_have_digits_that_are_8_on_average_and_rows_that_do_not_follow_from_each_other() -> None:
    digits = torch.stack([random_words(torch.empty(64, 256)) >> shift & 15 for shift in range(0, 32, 4)], dim=-1).flatten(1)
    centred = digits.double() - 8
    assert abs(centred.mean()) < 0.05
    rows = torch.nn.functional.normalize(centred, dim=1)
    assert (rows @ rows.T - torch.eye(64)).abs().max() < 0.12


def test_random_experts_take_the_form_of_the_config() -> None:
    for way in PACKED.values():
        form = packed_form(way, Numbers(way.inner))
        form.randomize(torch.randn(1000) * 0.02)
        routes = Routes(torch.randn(3, HIDDEN), torch.tensor([[0, 1]] * 3, dtype=torch.int32), torch.ones(3, 2))
        made = form.onto(torch.zeros(3, HIDDEN), routes, "silu")
        assert made.isfinite().all()
        assert 1e-5 < made.std() < 1


def filled(way: str, numbers: Numbers, communicator: Apart, *, divides_experts: bool = False) -> Experts:
    tensors, store = WAYS[way]
    stored = {PREFIX + name: value for name, value in store(numbers).items()}
    place = Placement(
        torch.float32, torch.device("cpu"), communicator, WeightStorage(names=stored.keys()), divides_experts=divides_experts
    )
    experts = Experts(*arch_of(tensors), PREFIX, place)
    with torch.inference_mode():
        destinations = list(experts.destinations())
        assert {destination.name for destination in destinations} == stored.keys()
        for destination in destinations:
            content = MadeUp(destination.name, stored[destination.name])
            assert content.shape == destination.region.whole
            destination.fill(content)
        experts.finish()
    return experts


def expected_of(numbers: Numbers, hidden: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    total = torch.zeros(len(hidden), HIDDEN, dtype=torch.float64)
    for token, chosen in enumerate(ids.tolist()):
        for expert, weight in zip(chosen, weights[token].tolist(), strict=True):
            gate = numbers.gate[expert].double() @ hidden[token].double() + numbers.gate_bias[expert]
            up = numbers.up[expert].double() @ hidden[token].double() + numbers.up_bias[expert]
            made = numbers.down[expert].double() @ (torch.nn.functional.silu(gate) * up) + numbers.down_bias[expert]
            total[token] += weight * made
    return total


@pytest.mark.parametrize("ranks", ["one", "parts of each", "some each"])
@pytest.mark.parametrize("way", WAYS)
def test_experts_are_the_same_however_they_are_stored_and_divided(way: str, ranks: str) -> None:
    numbers, hidden, weights = Numbers(), torch.randn(5, HIDDEN) / 4, torch.rand(5, 2)
    ids = torch.stack([torch.randperm(COUNT)[:2] for _ in range(5)]).int()
    world_size = 1 if ranks == "one" else 2 if ranks == "some each" else 3
    total = torch.zeros(5, HIDDEN)
    with torch.inference_mode():
        for rank in range(world_size):
            experts = filled(way, numbers, Apart(rank, world_size), divides_experts=ranks == "some each")
            total = experts.add_to(total, Routes(hidden, ids, weights))
    torch.testing.assert_close(total.double(), expected_of(numbers, hidden, ids, weights), atol=1e-4, rtol=1e-4)


def test_a_checkpoint_in_blocks_is_the_model_that_its_numbers_make(tmp_path: Path) -> None:
    """As published: experts in blocks of MXFP4, all else in numbers, and config.json says so."""
    reference = reference_model("GptOss", SHAPE | GPT_OSS)
    stored = dict(reference.state_dict())
    for name in [name for name in stored if name.endswith(("experts.gate_up_proj", "experts.down_proj"))]:
        values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
        rows = values[torch.randint(8, stored[name].mT.shape)] / 16
        stored[name].copy_(rows.mT)
        del stored[name]
        stored[f"{name}_blocks"], stored[f"{name}_scales"] = packed(rows)
    save_file({name: tensor.contiguous() for name, tensor in stored.items()}, tmp_path / "model.safetensors")
    config = reference.config.to_dict() | {
        "architectures": ["GptOssForCausalLM"],
        "quantization_config": {"quant_method": "mxfp4"},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    prompt = prompt_of(30)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(PagedRun(load(tmp_path)).step({"a": prompt})["a"], expected, atol=TOLERANCE, rtol=0)


def test_experts_of_8_bit_floats_are_expanded_as_they_come(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    reference = reference_model("Qwen3Moe", SHAPE | EXPERTS | {"head_dim": 32})
    for layer in reference.model.layers:
        for weights in (layer.mlp.experts.gate_up_proj, layer.mlp.experts.down_proj):
            weights.data.copy_(weights.data.mul(16).to(torch.float8_e4m3fn).float() / 16)
    reference.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    stored = load_file(file)
    for name in [name for name in stored if ".experts." in name]:
        stored[f"{name}_scale"] = torch.full((len(stored[name]), 1), 1 / 16)
        stored[name] = (stored[name] * 16).to(torch.float8_e4m3fn)
    save_file(stored, file)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["self_attn"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    prompt = prompt_of(30)
    with torch.inference_mode():
        expected = reference(torch.tensor([prompt])).logits[0]
    torch.testing.assert_close(PagedRun(load(tmp_path)).step({"a": prompt})["a"], expected, atol=TOLERANCE, rtol=0)
    assert "quantized weights are expanded" in caplog.text
    shares = [down_of(tmp_path, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat(shares, dim=2), down_of(tmp_path, 0, 1))


def down_of(folder: Path, rank: int, world_size: int) -> Tensor:
    """What a rank has of down in the first layer."""
    checkpoint = resolve(str(folder))
    ranks = Apart(rank, world_size)
    model = load_model(checkpoint, read_arch(checkpoint.config), dtype=torch.float32, device="cpu", communicator=ranks)
    form = next(module for module in model.modules() if isinstance(module, Experts)).form
    assert isinstance(form, DenseExperts)
    return form.down


@pytest.mark.parametrize("family", ["Qwen3Moe", "GptOss"])
def test_rounding_while_loading_includes_experts_however_they_are_stored(family: str, tmp_path: Path) -> None:
    """Of Qwen3 a tensor each, of gpt-oss in turns and transposed; on a CPU as numbers of the model's dtype."""
    settings = EXPERTS | {"head_dim": 32} if family == "Qwen3Moe" else GPT_OSS
    reference_model(family, SHAPE | settings).save_pretrained(tmp_path)
    checkpoint = resolve(str(tmp_path))
    arch = read_arch(checkpoint.config)
    rounded = load_model(checkpoint, arch, dtype=torch.float32, device="cpu", quantization="fp8")
    plain = load_model(checkpoint, arch, dtype=torch.float32, device="cpu")
    for ours, theirs in zip(experts_of(rounded), experts_of(plain), strict=True):
        for mine, exact in ((ours.gate_up, theirs.gate_up), (ours.down, theirs.down)):
            values, scale = quantize_fp8_rows(exact.flatten(0, 1))
            assert torch.equal(mine.flatten(0, 1), values.float() * scale)
    for ours, theirs in zip(routers_of(rounded), routers_of(plain), strict=True):
        assert torch.equal(ours, theirs)


def experts_of(model: CausalModel) -> list[DenseExperts]:
    forms = [module.form for module in model.modules() if isinstance(module, Experts)]
    return [form for form in forms if isinstance(form, DenseExperts)]


def routers_of(model: CausalModel) -> list[Tensor]:
    return [module.weight for module in model.modules() if isinstance(module, Router)]


def test_a_layer_past_the_last_is_not_read(tmp_path: Path) -> None:
    reference = reference_model("Glm4Moe", SHAPE | GLM4_MOE)
    reference.save_pretrained(tmp_path)
    save_file({"model.layers.2.eh_proj.weight": torch.zeros(4, 4)}, tmp_path / "model-00002-of-00002.safetensors")
    first = (tmp_path / "model.safetensors").rename(tmp_path / "model-00001-of-00002.safetensors")
    with safe_open(first, "pt") as opened:
        names = dict.fromkeys(opened.keys(), first.name)
    index = {"weight_map": names | {"model.layers.2.eh_proj.weight": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert load(tmp_path).arch.num_layers == 2


def test_experts_that_can_not_be_divided_are_refused_by_name() -> None:
    for divides_experts, message in ((True, "4 experts of mlp"), (False, "96 inner features of the experts of mlp")):
        with pytest.raises(ConfigError, match=message):
            filled("gate before up", Numbers(), Apart(0, 5), divides_experts=divides_experts)

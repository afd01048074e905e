"""Loading takes little more memory than the weights that stay: what is rounded, unpacked or packed is so in pieces."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

from streamserve.models.layers.linear import Linear
from streamserve.models.mixture import ExpertTensors, Mixture
from streamserve.models.weights.experts import four_bits as four_bit_experts
from streamserve.models.weights.experts.choose import make_experts
from streamserve.models.weights.experts.spec import ExpertsSpec
from streamserve.models.weights.forms import four_bits as four_bit_form
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes import fp8, on_load
from streamserve.models.weights.storage import WeightStorage
from streamserve_kernels import RoutingRule
from tests.models.four_bit_tensors import awq, gptq, pack_quantized
from tests.models.stored import MadeUp
from tests.support.live_tensors import PeakBytes

ROWS, COLUMNS = 1024, 2048


@dataclass(frozen=True)
class Case:
    """pieces  bytes that may be alive beside the weight, for each of its numbers"""

    store: Callable[[], dict[str, Tensor]]
    pieces: float
    config: dict[str, Any] = field(default_factory=dict)
    quantization: str = "auto"


def four(store: Callable[..., tuple[dict[str, Tensor], Tensor]]) -> Callable[[], dict[str, Tensor]]:
    return lambda: store(ROWS, COLUMNS, 128)[0]


GROUPS = {"bits": 4, "group_size": 128}
PACKED = {"format": "pack-quantized", "config_groups": {"all": {"targets": ["Linear"], "weights": {
    "type": "int", "num_bits": 4, "strategy": "group", "group_size": 128, "symmetric": True,
}}}}  # fmt: skip
CASES = {
    "rounded from bf16": Case(lambda: {"weight": torch.randn(ROWS, COLUMNS).bfloat16()}, 0.7, quantization="fp8"),
    "gptq": Case(four(gptq), 5, {"quant_method": "gptq", **GROUPS}),
    "awq": Case(four(awq), 5, {"quant_method": "awq", **GROUPS}),
    "pack-quantized": Case(four(pack_quantized), 5, {"quant_method": "compressed-tensors", **PACKED}),
}


@pytest.fixture(autouse=True)
def _packed_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forms of a GPU: what is done while they are filled is the same anywhere."""
    monkeypatch.setattr(fp8, "can_keep_fp8", lambda dtype, device: True)
    for module in (four_bit_form, four_bit_experts):
        monkeypatch.setattr(module, "can_keep_grouped", lambda dtype, device: True)
    # As small beside this weight as the usual number is beside one of a real model.
    monkeypatch.setattr(on_load, "AT_ONCE", ROWS * COLUMNS // 16)


@pytest.mark.parametrize("name", CASES)
def test_a_weight_is_loaded_in_pieces(name: str) -> None:
    case = CASES[name]
    stored = {f"gate.{end}": tensor for end, tensor in case.store().items()}
    storage = WeightStorage(quantization_config=case.config, quantization=case.quantization, names=stored.keys())
    # fp16: in bf16 on a CPU four bits have a form of their own.
    linear = Linear("", {"gate": ROWS}, COLUMNS, Placement(torch.float16, torch.device("cpu"), storage=storage))
    with torch.inference_mode(), PeakBytes() as beside:
        for destination in linear.destinations():
            destination.fill(MadeUp(destination.name, stored[destination.name]))
        linear.finish()
    assert beside.most <= case.pieces * ROWS * COLUMNS


@pytest.mark.parametrize("name", ["gptq", "awq", "pack-quantized"])
def test_experts_of_4_bits_are_loaded_one_at_a_time(name: str) -> None:
    case, count, hidden, inner = CASES[name], 8, 256, 512
    store = {"gptq": gptq, "awq": awq, "pack-quantized": pack_quantized}[name]
    shapes = {"gate_proj": (inner, hidden), "up_proj": (inner, hidden), "down_proj": (hidden, inner)}
    stored = {
        f"experts.{expert}.{proj}.{end}": tensor
        for expert in range(count)
        for proj, shape in shapes.items()
        for end, tensor in store(*shape, 128)[0].items()
    }
    storage = WeightStorage(quantization_config=case.config, names=stored.keys())
    place = Placement(torch.float16, torch.device("cpu"), storage=storage)
    names = ExpertTensors("experts.{}.gate_proj.weight", "experts.{}.up_proj.weight", "experts.{}.down_proj.weight")
    spec = ExpertsSpec.of(Mixture(count, inner, RoutingRule(2), (True,), (names,)), hidden, "", place)
    form = make_experts(spec, place)
    assert isinstance(form, four_bit_experts.FourBitExperts)
    destinations = list(form.destinations())
    with torch.inference_mode(), PeakBytes() as beside:
        for destination in destinations:
            destination.fill(MadeUp(destination.name, stored[destination.name]))
        form.finish()
    # Gate and up of an expert together.
    assert beside.most <= case.pieces * 2 * inner * hidden
    kept = sum(parameter.nbytes for parameter in form.parameters())
    assert kept <= 0.55 * count * 3 * inner * hidden

"""A linear acts alike whatever the form of its weight, alone and as compiled pieces trace it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from streamserve.errors import ConfigError, ModelNotSupported
from streamserve.models.aot.weights import linear_shape, traced_weight, weight_tensors
from streamserve.models.communicator import Apart
from streamserve.models.layers.linear import Division, Linear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.destination import Region
from streamserve.models.weights.forms.blocked import BlockedForm
from streamserve.models.weights.forms.dense import DenseForm
from streamserve.models.weights.forms.expanded import ExpandedAtLast, ExpandedFourBits
from streamserve.models.weights.forms.form import Form, WeightPart, WeightSpec
from streamserve.models.weights.forms.four_bits import FourBitForm
from streamserve.models.weights.forms.fp8 import Fp8Form
from streamserve.models.weights.forms.int4 import Int4Form, is_few
from streamserve.models.weights.grouped import GroupedIntegers
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.schemes.awq import Awq
from streamserve.models.weights.schemes.gptq import Gptq
from streamserve.models.weights.schemes.packed import PackQuantized
from streamserve.models.weights.storage import WeightStorage
from streamserve_kernels import Activation, can_block
from tests.models.four_bit_tensors import awq, gptq, pack_quantized
from tests.models.stored import MadeUp, eight_bits, fill, four_bits, numbers

CPU = torch.device("cpu")
PARTS = {"gate": 64, "up": 32}
IN, OUT, EPS = 64, 96, 1e-5

Content = Tensor | GroupedIntegers


@dataclass(frozen=True)
class Case:
    """How a checkpoint stores weights, and the dtype of what they multiply.

    store   rows, columns to a weight's tensors by the ends of their names, and to the numbers that they stand for, in fp64
    digits  4-bit digits per number; 0 where it has none
    config  the quantization_config
    traced  layers can be compiled with it
    """

    store: Callable[[int, int], tuple[dict[str, Content], Tensor]]
    dtype: torch.dtype
    digits: int = 0
    config: dict[str, Any] = field(default_factory=dict)
    traced: bool = True

    def storage(self, names: Iterable[str]) -> WeightStorage:
        return WeightStorage({f"{name}.weight": self.digits for name in names} if self.digits else {}, self.config)


def floats(rows: int, columns: int) -> tuple[dict[str, Content], Tensor]:
    weight = torch.randn(rows, columns).bfloat16()
    return {"weight": weight}, weight.double()


def eight_bit_floats(per: str) -> Callable[[int, int], tuple[dict[str, Content], Tensor]]:
    """With a scale of each row, or of all of them and one for activations."""

    def store(rows: int, columns: int) -> tuple[dict[str, Content], Tensor]:
        weight, scale = torch.randn(rows, columns).to(torch.float8_e4m3fn), torch.rand(rows if per == "row" else 1, 1) + 0.5
        tensors: dict[str, Content] = {"weight": weight, "weight_scale": scale if per == "row" else scale[0, 0]}
        return tensors | ({} if per == "row" else {"input_scale": torch.rand(())}), weight.double() * scale.double()

    return store


def grouped(integers: Callable[[int, int], GroupedIntegers]) -> Callable[[int, int], tuple[dict[str, Content], Tensor]]:
    def store(rows: int, columns: int) -> tuple[dict[str, Content], Tensor]:
        weight = integers(rows, columns)
        return {"weight": weight}, numbers(weight)

    return store


def packed_config(**weights: Any) -> dict[str, Any]:
    weights = {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32} | weights
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": groups}


CASES = {
    "dense": Case(floats, torch.float32),
    "blocked": Case(floats, torch.bfloat16),
    "8-bit floats, scaled by rows": Case(eight_bit_floats("row"), torch.bfloat16, config={"quant_method": "fbgemm_fp8"}),
    "8-bit floats, scaled by tensor": Case(
        eight_bit_floats("tensor"), torch.float32, config={"quant_method": "fp8", "activation_scheme": "static"}
    ),
    "four bits": Case(grouped(four_bits), torch.bfloat16, digits=1),
    "eight bits": Case(grouped(eight_bits), torch.bfloat16, digits=2),
}
CASES |= {
    name: Case(store, dtype, config=config)
    for name, store, dtype, config in (
        ("GPTQ", gptq, torch.bfloat16, {"quant_method": "gptq", "sym": True}),
        ("GPTQ with zero points", partial(gptq, sym=False), torch.float32, {"quant_method": "gptq", "sym": False}),
        ("GPTQ in act-order", partial(gptq, act_order=True), torch.float32, {"quant_method": "gptq", "desc_act": True}),
        ("AWQ", awq, torch.bfloat16, {"quant_method": "awq"}),
    )
    for config in [{"bits": 4, "group_size": 32} | config]
}
CASES["pack-quantized"] = Case(pack_quantized, torch.bfloat16, config=packed_config(symmetric=True))
CASES["pack-quantized with zero points"] = Case(
    partial(pack_quantized, symmetric=False), torch.float32, config=packed_config(symmetric=False)
)
EXPANDED = {name for name, case in CASES.items() if case.config}
"""Cases whose forms, once finished, are those of others here."""

TRACED = [name for name, case in CASES.items() if case.traced and name not in EXPANDED]


COLUMNS_STAY = {"GPTQ in act-order"}
"""Cases that can't be divided by columns."""


def stored_as(case: Case) -> tuple[dict[str, Content], dict[str, Tensor]]:
    """The tensors of a linear of `PARTS` by name, and the numbers of each part."""
    parts = {name: case.store(rows, IN) for name, rows in PARTS.items()}
    contents = {f"{name}.{end}": content for name, (tensors, _) in parts.items() for end, content in tensors.items()}
    return contents, {name: weight for name, (_, weight) in parts.items()}


def linear_of(name: str, *, bias: bool) -> tuple[Linear, Tensor, Tensor | None]:
    """A linear of two parts, its weight as it should be in fp64, and its bias."""
    case = CASES[name]
    contents, weights = stored_as(case)
    linear = Linear("", PARTS, IN, Placement(case.dtype, CPU, storage=case.storage(PARTS)), bias=bias)
    biases = {f"{name}.bias": torch.randn(rows) for name, rows in PARTS.items()} if bias else {}
    fill(linear, contents | biases)
    weight = torch.cat(list(weights.values()))
    return linear, weight, torch.cat(list(biases.values())).to(case.dtype).double() if bias else None


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if actual.dtype is torch.float32 else 1e-2
    torch.testing.assert_close(actual.double(), expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


@pytest.mark.parametrize(
    ("case", "bias", "rows"),
    [(case, bias, rows) for case in CASES for bias in (False, True) for rows in ([5] if case in EXPANDED else [1, 4, 5, 20])],
)
def test_a_linear_multiplies_alone_after_a_norm_gated_and_onto_a_residual(case: str, bias: bool, rows: int) -> None:
    linear, weight, biases = linear_of(case, bias=bias)
    dtype = CASES[case].dtype
    norm = RmsNorm("norm", IN, Placement(dtype, CPU), eps=EPS)
    x, residual = torch.randn(rows, IN, dtype=dtype), torch.randn(rows, OUT, dtype=dtype)
    with torch.inference_mode():
        norm.weight.copy_(torch.rand(IN) + 0.5)

        def expected(of: Tensor) -> Tensor:
            product = of.double() @ weight.T
            return product if biases is None else product + biases

        close(linear(x), expected(x))
        close(linear.after_norm(x, norm), expected(norm(x)))
        gate, up = expected(norm(x)).chunk(2, dim=1)
        close(linear.gated_after_norm(x, norm, "silu"), torch.nn.functional.silu(gate) * up)
        close(linear.gated_after_norm(x, norm, "gelu_tanh"), torch.nn.functional.gelu(gate, approximate="tanh") * up)
        close(linear.onto(residual.clone(), x), residual.double() + expected(x))


@pytest.mark.parametrize("rows", [1, 4, 5, 20])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", TRACED)
def test_what_is_compiled_multiplies_as_the_form_does(case: str, bias: bool, rows: int) -> None:
    linear, _, _ = linear_of(case, bias=bias)
    few, dtype = is_few(rows), CASES[case].dtype
    shape = linear_shape(linear)
    assert shape is not None
    traced = traced_weight(shape, dtype, few=few)
    norm = torch.rand(IN, dtype=dtype)
    x, residual = torch.randn(rows, IN, dtype=dtype), torch.randn(rows, OUT, dtype=dtype)
    names = [name for name, _ in traced.named_parameters()]
    weights = dict(zip(names, weight_tensors(linear.form, few=few), strict=True))

    def compiled(method: str, *arguments: object) -> Tensor:
        traced.forward = getattr(traced, method)  # type: ignore[method-assign]
        result: Tensor = torch.func.functional_call(traced, weights, arguments)
        return result

    with torch.inference_mode():
        close(compiled("multiply", x, linear.bias), linear(x).double())
        for activation in get_args(Activation):
            gated = linear.form.gated_after_norm(x, norm, EPS, activation, linear.bias)
            close(compiled("gated_after_norm", x, norm, EPS, activation, linear.bias), gated.double())
        before = residual.clone()
        close(compiled("onto", residual, x, linear.bias), linear.onto(before.clone(), x).double())
        assert torch.equal(residual, before)


@pytest.mark.parametrize("divided", ["rows", "columns"])
@pytest.mark.parametrize("case", CASES)
def test_the_shares_of_two_ranks_multiply_as_the_whole_does(case: str, divided: Division) -> None:
    if divided == "columns" and case in COLUMNS_STAY:
        with pytest.raises(ConfigError, match="orders its inputs"):
            Linear("", PARTS, IN, Placement(torch.float32, CPU, Apart(0, 2), CASES[case].storage(PARTS)), divided=divided)
        return
    contents, weights = stored_as(CASES[case])
    storage, dtype = CASES[case].storage(PARTS), CASES[case].dtype
    places = [Placement(dtype, CPU, Apart(rank, 2), storage) for rank in range(2)]
    ranks = [fill(Linear("", PARTS, IN, place, divided=divided), contents) for place in places]
    x = torch.randn(3, IN, dtype=dtype)
    expected = x.double() @ torch.cat(list(weights.values())).T
    with torch.inference_mode():
        if divided == "columns":
            outputs = [linear(half) for linear, half in zip(ranks, x.chunk(2, dim=1), strict=True)]
            close(outputs[0].double() + outputs[1].double(), expected)
        else:
            of_parts = [linear(x).split([rows // 2 for rows in PARTS.values()], dim=1) for linear in ranks]
            close(torch.cat([torch.cat(parts, dim=1) for parts in zip(*of_parts, strict=True)], dim=1), expected)


def form_on(device: str, dtype: torch.dtype, digits: dict[str, int], parts: dict[str, int] | None = None) -> type[Form]:
    place = Placement(dtype, torch.device(device), storage=WeightStorage(digits))
    return type(Linear("", parts or {"up": 32}, IN, place).form)


def test_a_form_is_chosen_by_how_the_weight_is_stored_and_where_it_will_live() -> None:
    packed = {"up.weight": 1}
    plain = BlockedForm if can_block(torch.bfloat16, CPU) else DenseForm
    assert form_on("cpu", torch.bfloat16, packed) is Int4Form
    assert form_on("cpu", torch.bfloat16, {}) is plain
    assert form_on("cpu", torch.float32, packed) is DenseForm
    assert form_on("meta", torch.bfloat16, packed) is DenseForm
    assert form_on("cpu", torch.bfloat16, packed, {"up": 24}) is plain, "the kernel takes rows by 16"
    assert form_on("cpu", torch.bfloat16, packed, {"up": 32, "gate": 32}) is plain, "a part is stored otherwise"
    assert form_on("cpu", torch.bfloat16, {**packed, "gate.weight": 2}, {"up": 32, "gate": 32}) is plain, (
        "parts are stored unlike"
    )


def test_finishing_keeps_nothing_of_what_was_filled_but_what_multiplies() -> None:
    reordered = dict.fromkeys((name for name, case in CASES.items() if case.dtype is torch.bfloat16), 1)
    kept_of = dict.fromkeys(CASES, 1) | ({} if not can_block(torch.bfloat16, CPU) else dict.fromkeys(reordered, 0))
    for case, kept in kept_of.items():
        linear, _, _ = linear_of(case, bias=False)
        wide = [each for each in linear.parameters() if each.shape == (OUT, IN)]
        assert len(wide) == kept, case


def test_8_bit_floats_act_as_the_numbers_that_they_are_expanded_to() -> None:
    """Where kernels multiply them as they are; on a CPU, by the reference."""
    contents, _ = stored_as(CASES["8-bit floats, scaled by tensor"])
    storage = CASES["8-bit floats, scaled by tensor"].storage(PARTS)
    linear = Linear("", PARTS, IN, Placement(torch.float32, CPU, storage=storage))
    assert isinstance(linear.form, ExpandedAtLast)
    stored = linear.form.stored
    fill(linear, contents)
    x, norm, bias, residual = torch.randn(3, IN), torch.rand(IN), torch.randn(OUT), torch.randn(3, OUT)
    for method, arguments in {
        "multiply": (x, bias),
        "after_norm": (x, norm, EPS, bias),
        "gated_after_norm": (x, norm, EPS, "silu", None),
        "onto": (residual, x, bias),
    }.items():
        torch.testing.assert_close(getattr(stored, method)(*arguments), getattr(linear.form, method)(*arguments))
    assert isinstance(stored, Fp8Form)
    assert stored.input_scale == max(float(contents[f"{part}.input_scale"]) for part in PARTS)  # type: ignore[arg-type]


def test_8_bit_floats_stay_so_where_they_are_multiplied() -> None:
    def form_in(dtype: torch.dtype, device: str = "meta", quantization: str = "auto", columns: int = IN) -> type[Form]:
        storage = WeightStorage({}, {"quant_method": "fbgemm_fp8", "modules_to_not_convert": ["layers.0"]}, quantization)
        place = Placement(dtype, torch.device(device), storage=storage)
        return type(Linear("layers.1.", {"up": 32}, columns, place).form)

    assert form_in(torch.bfloat16) is form_in(torch.float16) is Fp8Form
    assert form_in(torch.float32) is form_in(torch.bfloat16, "cpu") is ExpandedAtLast
    assert form_in(torch.bfloat16, quantization="none") is ExpandedAtLast
    assert form_in(torch.bfloat16, columns=40) is ExpandedAtLast, "the kernels read 16 numbers at a time"


def block_linear(rank: int, ranks: int, divided: Division, parts: dict[str, int], columns: int) -> Linear:
    storage = WeightStorage({}, {"quant_method": "fp8", "weight_block_size": [128, 128]})
    place = Placement(torch.float32, CPU, Apart(rank, ranks), storage)
    return Linear("", parts, columns, place, divided=divided)


@pytest.mark.parametrize("divided", ["rows", "columns"])
def test_blocks_of_8_bit_floats_are_divided_among_ranks(divided: Division) -> None:
    parts, columns = {"q": 512, "k": 256}, 512
    weights = {name: torch.randn(rows, columns).to(torch.float8_e4m3fn) for name, rows in parts.items()}
    scales = {name: torch.rand(rows // 128, columns // 128) for name, rows in parts.items()}
    stored = {f"{name}.weight": weight for name, weight in weights.items()}
    stored |= {f"{name}.weight_scale_inv": scale for name, scale in scales.items()}
    shares = []
    for rank in range(2):
        linear = block_linear(rank, 2, divided, parts, columns)
        shares.append(fill(linear, dict(stored)).form.get_parameter("weight"))
    for name, expected in weights.items():
        wide = expected.float() * scales[name].repeat_interleave(128, 0).repeat_interleave(128, 1)
        at = slice(None, 256) if name == "q" else slice(256, None)
        if divided == "rows":
            assert torch.equal(torch.cat([share[at] for share in shares]), wide)
        else:
            at = slice(None, 512) if name == "q" else slice(512, None)
            assert torch.equal(torch.cat([share[at] for share in shares], dim=1), wide)


def test_the_last_blocks_may_be_smaller_and_others_may_not_be_cut() -> None:
    weight, scale = torch.randn(200, 176).to(torch.float8_e4m3fn), torch.rand(2, 2)
    filled = fill(block_linear(0, 1, "rows", {"up": 200}, 176), {"up.weight": weight, "up.weight_scale_inv": scale})
    wide = weight.float() * scale.repeat_interleave(128, 0)[:200].repeat_interleave(128, 1)[:, :176]
    assert torch.equal(filled.form.get_parameter("weight"), wide)
    with pytest.raises(ConfigError, match="columns 64 to 128 of up cut its blocks"):
        block_linear(1, 2, "columns", {"up": 200}, 128)
    with pytest.raises(ConfigError, match=r"rows 0 to 200, .* of gate cut"):
        block_linear(0, 1, "rows", {"gate": 200, "up": 200}, 128)


FOUR_BITS = {
    "GPTQ": (Gptq(32, has_zero=False, has_order=False), gptq),
    "GPTQ with zero points": (Gptq(64, has_zero=True, has_order=False), partial(gptq, group=64, sym=False)),
    "GPTQ in act-order": (Gptq(32, has_zero=False, has_order=True), partial(gptq, act_order=True)),
    "AWQ": (Awq(128, has_zero=True, has_order=False), partial(awq, group=128)),
    "pack-quantized": (PackQuantized(32, has_zero=False, has_order=False), pack_quantized),
    "pack-quantized in act-order": (
        PackQuantized(32, has_zero=True, has_order=True),
        partial(pack_quantized, symmetric=False, act_order=True),
    ),
}


@pytest.mark.parametrize("case", FOUR_BITS)
def test_four_bits_are_kept_as_a_gpu_multiplies_them(case: str) -> None:
    """The form that a GPU has, filled here."""
    scheme, store = FOUR_BITS[case]
    parts = {name: store(rows, 256) for name, rows in PARTS.items()}
    spec = WeightSpec(tuple(WeightPart(name, Region.of(rows, 256)) for name, rows in PARTS.items()))
    kept = {"group": scheme.group, "has_zero": scheme.has_zero, "has_order": scheme.has_order}
    form = FourBitForm(spec, Placement(torch.float32, CPU), scheme._fill, **kept)
    for destination in form.destinations():
        name, _, end = destination.name.partition(".")
        content = MadeUp(destination.name, parts[name][0][end])
        assert destination.region.is_of(content.shape)
        destination.fill(content)
    weight, target = torch.cat([numbers for _, numbers in parts.values()]), torch.empty(OUT, 256)
    form.write_numbers(target)
    close(target, weight)
    x, residual = torch.randn(3, 256), torch.randn(3, OUT)
    close(form.multiply(x, None), x.double() @ weight.T)
    close(form.onto(residual.clone(), x, None), residual.double() + x.double() @ weight.T)


def test_parts_that_order_their_inputs_differently_are_refused() -> None:
    scheme, store = FOUR_BITS["GPTQ in act-order"]
    spec = WeightSpec(tuple(WeightPart(name, Region.of(64, 256)) for name in ("gate", "up")))
    form = FourBitForm(spec, Placement(torch.float32, CPU), scheme._fill, group=32, has_zero=False, has_order=True)
    with pytest.raises(ModelNotSupported, match="gate, up are multiplied together and order their inputs differently"):
        for destination in form.destinations():
            name, _, end = destination.name.partition(".")
            tensor = store(64, 256)[0][end]
            destination.fill(MadeUp(destination.name, tensor.flip(0) if (name, end) == ("up", "g_idx") else tensor))


def test_four_bits_stay_so_where_they_are_multiplied() -> None:
    def form_in(dtype: torch.dtype, device: str, config: dict[str, Any], rows: int = 64, columns: int = 128) -> type[Form]:
        storage = WeightStorage({}, {"bits": 4, "group_size": 32, "quant_method": "gptq"} | config)
        return type(Linear("layers.1.", {"up": rows}, columns, Placement(dtype, torch.device(device), storage=storage)).form)

    assert form_in(torch.bfloat16, "meta", {}) is form_in(torch.float16, "meta", {"desc_act": True}) is FourBitForm
    assert form_in(torch.bfloat16, "cpu", {}) is Int4Form
    assert form_in(torch.bfloat16, "cpu", {"desc_act": True}) is form_in(torch.float32, "meta", {}) is ExpandedFourBits
    assert form_in(torch.bfloat16, "meta", {}, rows=40) is form_in(torch.bfloat16, "meta", {}, columns=96) is ExpandedFourBits


def test_weights_of_another_type_than_the_config_says_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"'up.weight' has 8-bit floats, it is stored as torch.bfloat16"):
        fill(block_linear(0, 1, "rows", {"up": 128}, 128), {"up.weight": torch.zeros(128, 128).bfloat16()})

"""A linear acts alike whatever the form of its weight, alone and as compiled pieces trace it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from streamserve.models.aot.weights import linear_shape, traced_weight, weight_tensors
from streamserve.models.communicator import Apart
from streamserve.models.layers.linear import Division, Linear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.forms.blocked import BlockedForm
from streamserve.models.weights.forms.dense import DenseForm
from streamserve.models.weights.forms.form import Form
from streamserve.models.weights.forms.int4 import Int4Form, is_few
from streamserve.models.weights.grouped import GroupedIntegers
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.storage import WeightStorage
from streamserve_kernels import Activation, can_block
from tests.models.stored import eight_bits, fill, four_bits, numbers

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


def grouped(integers: Callable[[int, int], GroupedIntegers]) -> Callable[[int, int], tuple[dict[str, Content], Tensor]]:
    def store(rows: int, columns: int) -> tuple[dict[str, Content], Tensor]:
        weight = integers(rows, columns)
        return {"weight": weight}, numbers(weight)

    return store


CASES = {
    "dense": Case(floats, torch.float32),
    "blocked": Case(floats, torch.bfloat16),
    "four bits": Case(grouped(four_bits), torch.bfloat16, digits=1),
    "eight bits": Case(grouped(eight_bits), torch.bfloat16, digits=2),
}
TRACED = [name for name, case in CASES.items() if case.traced]


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


@pytest.mark.parametrize("rows", [1, 4, 5, 20])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CASES)
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
    reordered = dict.fromkeys(("blocked", "four bits", "eight bits"), int(not can_block(torch.bfloat16, CPU)))
    for case, kept in {"dense": 1, **reordered}.items():
        linear, _, _ = linear_of(case, bias=False)
        wide = [each for each in linear.parameters() if each.shape == (OUT, IN)]
        assert len(wide) == kept, case

"""A linear acts alike whatever the form of its weight, alone and as compiled pieces trace it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from streamserve.models.aot.weights import linear_shape, traced_weight, weight_tensors
from streamserve.models.layers.linear import Linear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.forms.blocked import BlockedForm
from streamserve.models.weights.forms.dense import DenseForm
from streamserve.models.weights.forms.form import Form
from streamserve.models.weights.forms.int4 import Int4Form, is_few
from streamserve.models.weights.grouped import GroupedIntegers
from streamserve.models.weights.placement import Placement
from streamserve.models.weights.storage import WeightStorage
from streamserve_kernels import can_block
from tests.models.stored import eight_bits, fill, four_bits, numbers

CPU = torch.device("cpu")
PARTS = {"gate": 32, "up": 16}
IN, OUT, EPS = 64, 48, 1e-5

Content = Tensor | GroupedIntegers


def floats(rows: int, columns: int) -> Content:
    return torch.randn(rows, columns)


CASES: dict[str, tuple[Callable[[int, int], Content], int, torch.dtype]] = {
    "dense": (floats, 0, torch.float32),
    "blocked": (floats, 0, torch.bfloat16),
    "four bits": (four_bits, 1, torch.bfloat16),
    "eight bits": (eight_bits, 2, torch.bfloat16),
}


def linear_of(case: str, *, bias: bool) -> tuple[Linear, Tensor, Tensor | None]:
    """A linear of two parts, its weight as it should be in fp64, and its bias."""
    make, digits, dtype = CASES[case]
    contents = {f"{name}.weight": make(rows, IN) for name, rows in PARTS.items()}
    storage = WeightStorage(dict.fromkeys(contents, digits) if digits else {})
    linear = Linear("", PARTS, IN, Placement(dtype, CPU, storage=storage), bias=bias)
    biases = {f"{name}.bias": torch.randn(rows) for name, rows in PARTS.items()} if bias else {}
    fill(linear, contents | biases)
    weight = torch.cat(
        [numbers(each) if isinstance(each, GroupedIntegers) else each.to(dtype).double() for each in contents.values()]
    )
    return linear, weight, torch.cat(list(biases.values())).to(dtype).double() if bias else None


def close(actual: Tensor, expected: Tensor) -> None:
    tolerance = 1e-5 if actual.dtype is torch.float32 else 1e-2
    torch.testing.assert_close(actual.double(), expected, atol=tolerance * float(expected.abs().max()), rtol=tolerance)


@pytest.mark.parametrize("rows", [1, 4, 5, 20])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_a_linear_multiplies_alone_after_a_norm_gated_and_onto_a_residual(case: str, bias: bool, rows: int) -> None:
    linear, weight, biases = linear_of(case, bias=bias)
    dtype = CASES[case][2]
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
@pytest.mark.parametrize("case", CASES)
def test_what_is_compiled_multiplies_as_the_form_does(case: str, bias: bool, rows: int) -> None:
    linear, _, _ = linear_of(case, bias=bias)
    few, dtype = is_few(rows), CASES[case][2]
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
        gated = linear.form.gated_after_norm(x, norm, EPS, "silu", linear.bias)
        close(compiled("gated_after_norm", x, norm, EPS, "silu", linear.bias), gated.double())
        before = residual.clone()
        close(compiled("onto", residual, x, linear.bias), linear.onto(before.clone(), x).double())
        assert torch.equal(residual, before)


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
    for case in CASES:
        linear, _, _ = linear_of(case, bias=False)
        wide = [each for each in linear.parameters() if each.shape == (OUT, IN)]
        assert len(wide) == (case == "dense" or not can_block(torch.bfloat16, CPU)), case

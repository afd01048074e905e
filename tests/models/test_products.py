"""The products inside compiled pieces are those of the reference, with every form that a weight takes on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from streamserve.models.aot.products import Product
from streamserve.models.aot.shape import is_few, linear_shape, linear_tensors
from streamserve_kernels import Weight, linear, linear_residual, pack_eight_bits, pack_four_bits, prepare_weight

OUT, IN, GROUPS = 48, 64, 2


def plain() -> Weight:
    return torch.randn(OUT, IN, dtype=torch.bfloat16)


def blocked() -> Weight:
    return prepare_weight(torch.randn(OUT, IN, dtype=torch.bfloat16))


def four_bits() -> Weight:
    quants, scale, zero = torch.randint(0, 16, (OUT, IN), dtype=torch.uint8), torch.rand(OUT, GROUPS), torch.randn(OUT, GROUPS)
    return pack_four_bits(quants, scale, zero, torch.empty(OUT, IN, dtype=torch.bfloat16))


def eight_bits() -> Weight:
    quants = torch.randint(-128, 128, (OUT, IN), dtype=torch.int8)
    return pack_eight_bits(quants, torch.rand(OUT, GROUPS), torch.empty(OUT, IN, dtype=torch.bfloat16))


@pytest.mark.parametrize("rows", [1, 4, 5, 20])
@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("make", [plain, blocked, four_bits, eight_bits])
def test_products_are_those_of_the_reference(make: Callable[[], Weight], has_bias: bool, rows: int) -> None:
    weight, bias = make(), torch.randn(OUT, dtype=torch.bfloat16) if has_bias else None
    x, residual = torch.randn(rows, IN, dtype=torch.bfloat16), torch.randn(rows, OUT, dtype=torch.bfloat16)
    few = is_few(rows)
    product, tensors = Product(linear_shape(weight, bias), few=few), linear_tensors(weight, bias, few=few)

    def assert_equal(got: torch.Tensor, expected: torch.Tensor) -> None:
        torch.testing.assert_close(got, expected, rtol=2e-2, atol=2e-2 * float(expected.abs().max()))

    assert_equal(product(x, iter(tensors)), linear(x, weight, bias))
    before = residual.clone()
    assert_equal(product.add(x, residual, iter(tensors)), linear_residual(x, weight, before.clone(), bias))
    assert torch.equal(residual, before)

"""Skinny linears in Triton against the reference in fp32, for every number of rows that takes a path of its own."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from streamserve_kernels.reference.projections import dense as reference
from tests.support.kernel_cases import DTYPES, LIMITS, random, relative_error, triton_area

projections = triton_area("projections.dense")
EPS = 1e-6
ROWS = [1, 2, 8, 9, 17, 40]
SHAPES = [(64, 24), (4096, 24), (48, 10)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_linears_agree_with_the_reference(rows: int, inner: int, outer: int, dtype: torch.dtype) -> None:
    x, weight, bias = (
        random(rows, inner, dtype=dtype),
        random(outer, inner, dtype=dtype) / inner**0.5,
        random(outer, dtype=dtype),
    )
    residual = random(rows, outer, dtype=dtype)
    wide = x.float(), weight.float()
    assert relative_error(projections.linear(x, weight, bias), reference.linear(*wide, bias.float())) < LIMITS[dtype]
    expected = reference.linear_residual(*wide, residual.float(), bias.float())
    assert relative_error(projections.linear_residual(x, weight, residual, bias), expected) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize(("inner", "outer"), SHAPES)
def test_fused_norms_and_activations_agree_with_the_reference(rows: int, inner: int, outer: int, dtype: torch.dtype) -> None:
    x, norm = random(rows, inner, dtype=dtype), random(inner)
    weight, bias = random(outer, inner, dtype=dtype) / inner**0.5, random(outer, dtype=dtype)
    expected = reference.norm_linear(x.float(), norm, EPS, weight.float(), bias.float())
    assert relative_error(projections.norm_linear(x, norm, EPS, weight, bias), expected) < LIMITS[dtype]
    for activation in get_args(reference.Activation):
        gated = reference.norm_gated_linear(x.float(), norm, EPS, weight.float(), activation)
        assert relative_error(projections.norm_gated_linear(x, norm, EPS, weight, activation), gated) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows", [1, 9])
def test_a_weight_may_have_a_single_row(rows: int, dtype: torch.dtype) -> None:
    x, weight = random(rows, 64, dtype=dtype).abs(), random(1, 64, dtype=dtype).abs()
    assert relative_error(projections.linear(x, weight), reference.linear(x.float(), weight.float())) < LIMITS[dtype]


def test_a_row_does_not_depend_on_its_batch_mates() -> None:
    x, weight = random(8, 256, dtype=torch.float16), random(32, 256, dtype=torch.float16)
    alone = projections.linear(torch.cat([x[:1], torch.zeros_like(x[1:])]), weight)
    assert torch.equal(projections.linear(x, weight)[:1], alone[:1])

"""Norms and gates in Triton against the reference in fp32."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from streamserve_kernels.reference import activations as reference_activations
from streamserve_kernels.reference import norms as reference
from tests.support.kernel_cases import DTYPES, LIMITS, random, relative_error, triton_area

activations, norms = triton_area("activations"), triton_area("norms")
EPS = 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 64), (5, 80), (37, 1024)])
def test_norms_agree_with_the_reference(rows: int, width: int, dtype: torch.dtype) -> None:
    x, weight, bias = random(rows, width, dtype=dtype), random(width), random(width)
    normed, residual = reference.rms_norm(x.float(), weight, EPS), random(rows, width, dtype=dtype)
    assert relative_error(norms.rms_norm(x, weight, EPS), normed) < LIMITS[dtype]
    onto = norms.rms_norm_residual(x, weight, EPS, residual)
    assert relative_error(onto, normed + residual.float()) < LIMITS[dtype]
    assert (
        relative_error(norms.layer_norm(x, weight, bias, EPS), reference.layer_norm(x.float(), weight, bias, EPS))
        < LIMITS[dtype]
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shares", [1, 2])
def test_norms_over_all_heads_agree_with_the_reference(shares: int, dtype: torch.dtype) -> None:
    qkv, q_norm, k_norm = random(5, 96 + 24 + 24, dtype=dtype), random(96), random(24)
    elsewhere = random(5, 96 + 24, dtype=dtype)
    squares = None if shares == 1 else reference.head_squares(qkv, 96, 24) + reference.head_squares(elsewhere, 96, 24)
    expected = qkv.float()
    reference.norm_all_heads_(expected, q_norm, k_norm, EPS, squares=squares, shares=shares)
    norms.norm_all_heads_(qkv, q_norm, k_norm, EPS, squares=squares, shares=shares)
    assert relative_error(qkv, expected) < LIMITS[dtype]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "width"), [(1, 24), (6, 96), (2, 3000)])
def test_gates_agree_with_the_reference(rows: int, width: int, dtype: torch.dtype) -> None:
    x = random(rows, 2 * width, dtype=dtype)
    for activation in get_args(reference_activations.Activation):
        expected = reference_activations.gated_activation(x.float(), activation)
        assert relative_error(activations.gated_activation(x, activation), expected) < LIMITS[dtype]

"""Products with weights of 8-bit floats in Triton against the reference in fp32, for every path that numbers of rows take."""

from __future__ import annotations

import pytest
import torch

from streamserve_kernels.reference.activations import gated_activation
from streamserve_kernels.reference.norms import rms_norm
from streamserve_kernels.reference.projections import quantized as reference
from streamserve_kernels.reference.projections.fp8 import Fp8Weight, dequantize, quantize_rows, scale_columns
from tests.support.kernel_cases import DEVICE, DTYPES, LIMITS, random, relative_error, triton_area

projections = triton_area("projections.quantized")
epilogue = triton_area("projections.epilogue")
Epilogue = epilogue.Epilogue
rows_area, one_row_area, activations, widening = (
    triton_area("projections.fp8_rows"),
    triton_area("projections.fp8_one_row"),
    triton_area("projections.fp8_activations"),
    triton_area("projections.fp8_widen"),
)
EPS = 1e-6
NARROW = 0.04 if DEVICE.type == "cuda" else 0.15
"""Relative error of a product whose activations have three bits of mantissa; Triton's interpreter loses carries in rounding."""

PRECISE = 6e-3 if DEVICE.type == "cuda" else NARROW
"""That of one whose activations are sums of two such numbers."""
PRECISE_ROWS = rows_area.PRECISE_ROWS

HALVES = [dtype for dtype in DTYPES if dtype is not torch.float32]
GPU = pytest.mark.skipif(DEVICE.type != "cuda", reason="cuBLAS multiplies more rows")


def weight_of(kind: str, outer: int, inner: int) -> Fp8Weight:
    values, scale = quantize_rows(random(outer, inner) / inner**0.5)
    if kind == "blocks":
        scale = (torch.rand(-(-outer // 128), scale_columns(inner), device=DEVICE) + 0.5) / 128 / inner**0.5
    return Fp8Weight(values, scale, torch.tensor([0.03], device=DEVICE) if kind == "static" else None)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows", [1, 3, 17, *(pytest.param(rows, marks=GPU) for rows in (2, 16, 64, 70, 1029))])
@pytest.mark.parametrize(("kind", "inner", "outer"), [("rows", 1168, 48), ("static", 256, 64), ("blocks", 256, 256)])
def test_fused_products_agree_with_the_reference(kind: str, inner: int, outer: int, rows: int, dtype: torch.dtype) -> None:
    weight, x, norm = weight_of(kind, outer, inner), random(rows, inner, dtype=dtype), random(inner)
    bias, residual = random(outer, dtype=dtype), random(rows, outer, dtype=dtype)
    limit = LIMITS[dtype] if rows == 1 else PRECISE if rows <= PRECISE_ROWS else NARROW
    summed = reference.linear(x.float(), weight, bias.float()) + residual.float()
    assert relative_error(projections.linear_residual(x, weight, residual.clone(), bias), summed) < limit
    if kind != "blocks":
        normed = reference.norm_linear(x.float(), norm, EPS, weight, bias.float())
        assert relative_error(projections.norm_linear(x, norm, EPS, weight, bias), normed) < limit
    gated = reference.norm_gated_linear(x.float(), norm, EPS, weight, "silu")
    assert relative_error(projections.norm_gated_linear(x, norm, EPS, weight, "silu"), gated) < 1.5 * limit


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("kind", ["rows", "blocks"])
def test_where_8_bit_floats_are_not_multiplied_weights_are_widened(kind: str, dtype: torch.dtype) -> None:
    weight, x = weight_of(kind, 256, 384), random(20, 384, dtype=dtype)
    bits = DEVICE.type == "cuda"
    product = rows_area.some_rows(x, None, weight, dtype, Epilogue(activation="silu"), bits=bits, rows=20)
    expected = gated_activation(x.float() @ dequantize(weight).T, "silu")
    assert relative_error(product, expected) < LIMITS[dtype]
    assert relative_error(widening.expand(weight, dtype, bits=bits), dequantize(weight)) < LIMITS[dtype]
    one = one_row_area.one_row(x[:1], weight, Epilogue(), bits=bits)
    assert relative_error(one, x[:1].float() @ dequantize(weight).T) < LIMITS[dtype]


@pytest.mark.parametrize("size", [1e-30, 1e6, 1e30])
def test_a_row_of_any_size_is_multiplied_as_it_is(size: float) -> None:
    weight, x = weight_of("rows", 40, 512), random(1, 512, dtype=torch.bfloat16) * size
    expected = reference.linear(x.double() / size, weight)
    for product in (projections.linear(x, weight), one_row_area.one_row(x, weight, Epilogue(), bits=False)):
        assert relative_error(product.double() / size, expected) < LIMITS[torch.bfloat16]


@pytest.mark.parametrize("width", [256, 200])
@pytest.mark.parametrize("scales", ["token", "group", "static"])
def test_activations_are_rounded_to_the_nearest_8_bit_floats(scales: str, width: int) -> None:
    x, norm = random(5, width, dtype=torch.float16), random(width)
    static = torch.tensor([0.04], device=DEVICE) if scales == "static" else None
    for norm_weight, expected in ((None, x.float()), (norm, rms_norm(x.float(), norm, EPS))):
        values, scale = activations.quantize(
            x, norm_weight=norm_weight, eps=EPS, input_scale=static, in_groups=scales == "group"
        )
        values = values[:5]
        factor = scale.T[:5].repeat_interleave(128, 1)[:, :width] if scales == "group" else scale[:, None]
        error = (values.float() * factor - expected).abs()
        nearest = (values.float() * factor).abs() / 16 + factor / 512
        assert relative_error(values.float() * factor, expected) < NARROW
        assert DEVICE.type != "cuda" or bool((error <= nearest * 1.01).all())
        if scales == "token":
            assert torch.allclose(scale, expected.abs().amax(1) / 448, rtol=1e-3)


@pytest.mark.parametrize("scales", ["token", "group", "static"])
def test_two_8_bit_floats_hold_what_bf16_does(scales: str) -> None:
    x = random(5, 256, dtype=torch.bfloat16)
    static = torch.tensor([0.01], device=DEVICE) if scales == "static" else None
    values, scale = activations.quantize(x, input_scale=static, in_groups=scales == "group", parts=2)
    factor = scale.T[:5].repeat_interleave(128, 1) if scales == "group" else scale[:, None]
    first, second = values.float().chunk(2)
    summed = (first[:5] + second[:5] / activations.REMAINDER) * factor
    assert relative_error(summed, x) < PRECISE
    assert DEVICE.type != "cuda" or bool(((summed - x.float()).abs() <= x.float().abs() / 256 + factor / 4096).all())


def test_a_row_of_zeros_stays_one() -> None:
    values, scale = activations.quantize(torch.zeros(2, 256, dtype=torch.float16, device=DEVICE))
    assert bool((values.float() == 0).all())
    assert bool(torch.isfinite(scale).all())
    values, scale = quantize_rows(torch.zeros(2, 8))
    assert bool((values.float() == 0).all())


def test_what_follows_a_product_is_one_pass() -> None:
    product, scales = random(3, 96, dtype=torch.float16), (random(3).abs(), random(96).abs())
    bias, residual = random(96), random(3, 96)
    scaled = product.float() * scales[0][:, None] * scales[1] + bias
    done = epilogue.finish(product, torch.float32, Epilogue(bias, residual), scales=scales)
    assert relative_error(done, scaled + residual) < 1e-5
    gated = epilogue.finish(product, torch.float32, Epilogue(bias, activation="silu"), scales=scales)
    assert relative_error(gated, gated_activation(scaled, "silu")) < 1e-5

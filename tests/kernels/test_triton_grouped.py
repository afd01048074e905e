"""Products with weights of 4-bit integers in Triton against the reference in fp32, for every path that numbers of rows take."""

from __future__ import annotations

import pytest
import torch

from streamserve_kernels.reference.projections import quantized as reference
from streamserve_kernels.reference.projections.grouped import GroupedWeight, dequantize, pack, unpack
from tests.support.kernel_cases import DEVICE, DTYPES, LIMITS, random, relative_error, triton_area

projections, kernels = triton_area("projections.quantized"), triton_area("projections.grouped_some_rows")
lone = triton_area("projections.grouped_one_row")
EPS = 1e-6
HALVES = [dtype for dtype in DTYPES if dtype is not torch.float32]
GPU = pytest.mark.skipif(DEVICE.type != "cuda", reason="minutes in the interpreter")


def weight_of(outer: int, inner: int, group: int, *, zero: bool = False, order: bool = False) -> GroupedWeight:
    def integers(*shape: int) -> torch.Tensor:
        return torch.randint(0, 16, shape, dtype=torch.uint8, device=DEVICE)

    scale = ((torch.rand(inner // group, outer, device=DEVICE) + 0.5) / 8 / inner**0.5).half()
    return GroupedWeight(
        pack(integers(outer, inner)),
        scale,
        integers(inner // group, outer) if zero else None,
        torch.randperm(inner, device=DEVICE) if order else None,
    )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize(
    "rows",
    [
        1,
        5,
        9,
        pytest.param(8, marks=GPU),
        pytest.param(70, marks=GPU),
        pytest.param(600, marks=GPU),
        pytest.param(1100, marks=GPU),
    ],
)
@pytest.mark.parametrize(
    ("outer", "inner", "group", "zero", "order"),
    [(64, 192, 64, False, False), (32, 640, 128, True, False), (32, 128, 32, True, False), (32, 128, 32, False, True)],
)
def test_fused_products_agree_with_the_reference(
    outer: int, inner: int, group: int, zero: bool, order: bool, rows: int, dtype: torch.dtype
) -> None:
    weight, x, norm = weight_of(outer, inner, group, zero=zero, order=order), random(rows, inner, dtype=dtype), random(inner)
    bias, residual = random(outer, dtype=dtype), random(rows, outer, dtype=dtype)
    plain = reference.linear(x.float(), weight, bias.float())
    assert (
        relative_error(projections.linear_residual(x, weight, residual.clone(), bias), plain + residual.float()) < LIMITS[dtype]
    )
    normed = reference.norm_linear(x.float(), norm, EPS, weight)
    assert relative_error(projections.norm_linear(x, norm, EPS, weight), normed) < LIMITS[dtype]
    gated = reference.norm_gated_linear(x.float(), norm, EPS, weight, "silu")
    assert relative_error(projections.norm_gated_linear(x, norm, EPS, weight, "silu"), gated) < LIMITS[dtype]


@pytest.mark.parametrize(
    "tiles",
    [(64, 16, 2, 4, 3, 0, 4), (128, 32, 2, 8, 3, 0, 1), (64, 16, 1, 4, 3, 1, 3)],
    ids=["more than have steps", "one", "of some tiles alone"],
)
def test_programs_may_share_out_the_columns(tiles: tuple[int, ...]) -> None:
    weight, x = weight_of(96, 384, 128, zero=True), random(20, 384, dtype=torch.float16)
    product = kernels.some_rows(x, weight, kernels.Epilogue(), shape=kernels.Tiles(*tiles))
    assert relative_error(product, reference.linear(x.float(), weight)) < LIMITS[torch.float16]


def test_rows_need_not_fill_the_last_tile() -> None:
    weight, x = weight_of(64, 192, 64, zero=True), random(130, 192, dtype=torch.float16)
    product = kernels.some_rows(x, weight, kernels.Epilogue())
    assert relative_error(product, reference.linear(x.float(), weight)) < LIMITS[torch.float16]


@pytest.mark.parametrize("shape", [(1, 1), (2, 1), (2, 2), (4, 2)])
def test_a_lone_row_is_multiplied_alike_by_any_number_of_warps(shape: tuple[int, int]) -> None:
    # The last tile has no other beside it, and the last unit half of its columns.
    weight, x, norm = weight_of(48, 576, 64, zero=True), random(1, 576, dtype=torch.float16), random(576)
    expected = reference.norm_linear(x.float(), norm, EPS, weight)
    assert relative_error(lone.one_row(x, weight, lone.Epilogue(), norm, EPS, shape=shape), expected) < 1e-3


def test_a_lone_row_keeps_its_precision_beside_outliers() -> None:
    weight, x = weight_of(32, 512, 128), random(1, 512, dtype=torch.float16)
    x[0, 5], x[0, 300] = 60, -3000
    x[0, 128:256] = 0
    residual = torch.zeros(1, 32, dtype=torch.float16, device=DEVICE)
    expected = reference.linear(x.float(), weight)
    assert relative_error(lone.one_row(x, weight, lone.Epilogue(residual=residual)), expected) < 4e-4
    without = x.clone()
    without[0, [5, 300]] = 0
    smaller = reference.linear(without.float(), weight)
    difference = lone.one_row(x, weight, lone.Epilogue()).float() - (expected - smaller)
    # Rounded to bf16, the rest of the outliers' groups would still be there; rounded to 8 bits, it would be lost.
    assert relative_error(difference, smaller) < 0.05


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite_makes_products_so() -> None:
    weight, x = weight_of(32, 256, 128), random(1, 256, dtype=torch.float16)
    x[0, 7] = float("nan")
    assert not bool(torch.isfinite(lone.one_row(x, weight, lone.Epilogue())).any())
    x[0, 7] = float("inf")
    assert not bool(torch.isfinite(lone.one_row(x, weight, lone.Epilogue())).any())


@pytest.mark.parametrize("zero", [False, True])
def test_a_weight_is_expanded_in_columns_own_order(zero: bool) -> None:
    weight = weight_of(48, 320, 64, zero=zero, order=True)
    assert relative_error(kernels.expand(weight, torch.float16), dequantize(weight._replace(order=None))) < 1e-3


def test_unpacking_gives_what_was_packed() -> None:
    quants = torch.randint(0, 16, (48, 192), dtype=torch.uint8)
    assert torch.equal(unpack(pack(quants)), quants)

"""Products with weights of 4-bit integers in Triton against the reference in fp32, for every path that numbers of rows take."""

from __future__ import annotations

import pytest
import torch

from streamserve_kernels.reference.projections import quantized as reference
from streamserve_kernels.reference.projections.grouped import GroupedWeight, dequantize, pack, unpack
from tests.support.kernel_cases import DEVICE, DTYPES, LIMITS, random, relative_error, triton_area

projections, kernels = triton_area("projections.quantized"), triton_area("projections.grouped_tiles")
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
@pytest.mark.parametrize("rows", [1, 9, pytest.param(5, marks=GPU), pytest.param(70, marks=GPU), pytest.param(600, marks=GPU)])
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


@pytest.mark.parametrize("zero", [False, True])
def test_a_weight_is_expanded_in_columns_own_order(zero: bool) -> None:
    weight = weight_of(48, 320, 64, zero=zero, order=True)
    assert relative_error(kernels.expand(weight, torch.float16), dequantize(weight._replace(order=None))) < 1e-3


def test_unpacking_gives_what_was_packed() -> None:
    quants = torch.randint(0, 16, (48, 192), dtype=torch.uint8)
    assert torch.equal(unpack(pack(quants)), quants)

"""Experts of 8-bit floats, of MXFP4 and of 4-bit integers in Triton against the reference in fp32, for all numbers of rows."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from streamserve_kernels.reference import experts as reference
from streamserve_kernels.reference.experts import Routes, RoutingRule
from streamserve_kernels.reference.projections.fp8 import quantize_rows, scale_columns
from streamserve_kernels.reference.projections.grouped import pack
from streamserve_kernels.reference.quantized_experts import (
    ExpertsWeight,
    Fp8ExpertsWeight,
    GroupedExpertsWeight,
    Mxfp4ExpertsWeight,
    mxfp4_numbers,
    numbers_of,
    pack_exponents,
    pack_groups,
)
from tests.support.kernel_cases import DEVICE, LIMITS, random, relative_error, triton_area

experts = triton_area("experts")
four_bits, fp8, one_row = (triton_area(f"experts.{name}") for name in ("four_bits", "fp8", "one_row"))

EPS = 1e-6
DTYPE = torch.bfloat16 if DEVICE.type == "cuda" else torch.float16
NARROW = 0.06 if DEVICE.type == "cuda" else 0.2
"""Relative error of products whose activations have three bits of mantissa; Triton's interpreter loses carries in rounding."""


def fp8_rows(count: int, outer: int, inner: int, *, alternates: bool) -> Fp8ExpertsWeight:
    values, scales = zip(*(quantize_rows(random(outer, inner) / inner**0.5) for _ in range(count)), strict=True)
    return Fp8ExpertsWeight(torch.stack(values), torch.stack(scales), alternates)


def fp8_blocks(count: int, outer: int, inner: int, *, alternates: bool) -> Fp8ExpertsWeight:
    values = fp8_rows(count, outer, inner, alternates=alternates).values
    matrices = 2 if alternates else 1
    blocks = matrices * -(-outer // (128 * matrices))
    scale = (torch.rand(count, blocks, scale_columns(inner), device=DEVICE) + 0.5) / 128 / inner**0.5
    return Fp8ExpertsWeight(values, scale, alternates)


def mxfp4(count: int, outer: int, inner: int, *, alternates: bool) -> Mxfp4ExpertsWeight:
    digits = torch.randint(16, (count, outer, inner), dtype=torch.uint8, device=DEVICE)
    exponents = torch.randint(118, 122, (count, outer, inner // 32), dtype=torch.uint8, device=DEVICE)
    words, packed = zip(*((pack(each), pack_exponents(of)) for each, of in zip(digits, exponents, strict=True)), strict=True)
    return Mxfp4ExpertsWeight(torch.stack(words), torch.stack(packed))


def integers(
    count: int, outer: int, inner: int, *, alternates: bool, group: int = 64, has_zero: bool = False
) -> GroupedExpertsWeight:
    quants = torch.randint(16, (count, outer, inner), dtype=torch.uint8, device=DEVICE)
    scale = ((torch.rand(count, outer, inner // group, device=DEVICE) + 0.5) / 5 / inner**0.5).to(DTYPE)
    zero = torch.randint(1, 17, scale.shape, dtype=torch.uint8, device=DEVICE) if has_zero else None
    return GroupedExpertsWeight(
        torch.stack([pack(each) for each in quants]),
        torch.stack([pack_groups(each) for each in scale]),
        None if zero is None else torch.stack([pack_groups(each) for each in zero]),
    )


KINDS = {
    "rows": fp8_rows,
    "blocks": fp8_blocks,
    "mxfp4": mxfp4,
    "groups of 64": integers,
    "groups of 32, zero points": partial(integers, group=32, has_zero=True),
}
FOUR_BITS = "mxfp4", "groups of 64", "groups of 32, zero points", "groups of 128"
SIZES = {"rows": (48, 32), "blocks": (144, 136)} | dict.fromkeys(FOUR_BITS, (64, 64))
"""Hidden and inner size; blocks, and tiles of 64, that are not full as well on a GPU."""
if DEVICE.type == "cuda":
    KINDS["groups of 128"] = partial(integers, group=128, has_zero=True)
    SIZES |= {"rows": (1168, 48)} | dict.fromkeys(FOUR_BITS, (640, 192)) | {"groups of 128": (640, 384)}

GPU = pytest.mark.skipif(DEVICE.type != "cuda", reason="seconds in the interpreter")


def routed(rows: int, num_experts: int, hidden: int, top_k: int) -> Routes:
    router = random(num_experts, hidden, dtype=DTYPE) / hidden**0.5
    norm = torch.ones(hidden, dtype=DTYPE, device=DEVICE)
    routes: Routes = experts.norm_route(random(rows, hidden, dtype=DTYPE), norm, EPS, router, RoutingRule(top_k))
    return routes


def expected_of(residual: Tensor, routes: Routes, gate_up: ExpertsWeight, down: ExpertsWeight, biases: list[Tensor]) -> Tensor:
    wide = Routes(routes.normed.float(), routes.expert_ids, routes.weights)
    options = dict(zip(("gate_up_bias", "down_bias"), (bias.float() for bias in biases), strict=False))
    return reference.experts_residual(residual.float().clone(), wide, gate_up, down, "silu", **options)


def limit_of(kind: str, rows: int) -> float:
    return LIMITS[DTYPE] if kind in FOUR_BITS or rows == 1 else NARROW


@pytest.mark.parametrize("rows", [1, 3, pytest.param(40, marks=GPU)])
@pytest.mark.parametrize("kind", KINDS)
def test_what_experts_of_two_ranks_add_agrees_with_the_reference(kind: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if DEVICE.type == "cpu":
        # A tenth of the programs: the interpreter runs them one after another.
        monkeypatch.setattr(one_row, "gate_up_shape", lambda hidden: (64, 128, 4))
        monkeypatch.setattr(one_row, "down_shape", lambda: (32, 128, 4))
    hidden, inner = SIZES[kind]
    gate_up = KINDS[kind](3, 2 * inner, hidden, alternates=True)
    down = KINDS[kind](3, hidden, inner, alternates=False)
    biases = [random(3, 2 * inner, dtype=DTYPE), random(3, hidden, dtype=DTYPE)]
    routes, residual = routed(rows, 3, hidden, 2), random(rows, hidden, dtype=DTYPE)
    total = residual.clone()
    for held in (slice(0, 1), slice(1, 3)):
        parts = [type(of)(*(each[held] if isinstance(each, Tensor) else each for each in of)) for of in (gate_up, down)]
        options = {"gate_up_bias": biases[0][held], "down_bias": biases[1][held], "first_expert": held.start}
        total = experts.experts_residual(total, routes, *parts, "silu", **options)
    assert relative_error(total, expected_of(residual, routes, gate_up, down, biases)) < limit_of(kind, rows)


@pytest.mark.parametrize("mean", [10, 200, pytest.param(1, marks=GPU), pytest.param(50, marks=GPU)])
@pytest.mark.parametrize("kind", KINDS)
def test_every_launch_that_a_batch_may_get_computes_the_same(kind: str, mean: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launches of large batches, here for a few tokens: the interpreter would take minutes for that many."""
    if kind in FOUR_BITS:
        shape = four_bits.product_shape(mean, 1)
        monkeypatch.setattr(four_bits, "product_shape", lambda *_: shape)
    else:
        shapes = fp8.product_shapes(mean, 1, has_blocks=kind == "blocks")
        monkeypatch.setattr(fp8, "product_shapes", lambda *_, **__: shapes)
    hidden = 128 if kind == "groups of 128" else 64
    gate_up, down = KINDS[kind](2, 2 * hidden, hidden, alternates=True), KINDS[kind](2, hidden, hidden, alternates=False)
    routes, residual = routed(5, 2, hidden, 2), random(5, hidden, dtype=DTYPE)
    actual = experts.experts_residual(residual.clone(), routes, gate_up, down, "silu")
    assert relative_error(actual, expected_of(residual, routes, gate_up, down, [])) < limit_of(kind, 5)


@pytest.mark.parametrize("kind", ["rows", "blocks"])
def test_where_8_bit_floats_are_not_multiplied_weights_are_widened(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8, "has_products", lambda device: False)
    gate_up, down = KINDS[kind](2, 64, 48, alternates=True), KINDS[kind](2, 48, 32, alternates=False)
    routes, residual = routed(4, 2, 48, 2), random(4, 48, dtype=DTYPE)
    actual = experts.experts_residual(residual.clone(), routes, gate_up, down, "silu")
    assert relative_error(actual, expected_of(residual, routes, gate_up, down, [])) < LIMITS[DTYPE]


def test_mxfp4_numbers_are_those_of_its_standard() -> None:
    digits = torch.arange(16, dtype=torch.uint8).repeat(2).unsqueeze(0)
    numbers = mxfp4_numbers(digits, torch.tensor([[128]], dtype=torch.uint8))[0, :16]
    assert numbers.tolist() == [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0]


def test_a_scale_that_the_kernels_have_no_room_for_is_refused() -> None:
    with pytest.raises(ValueError, match="the largest that is supported is 2"):
        pack_exponents(torch.full((16, 2), 129, dtype=torch.uint8))
    weight = mxfp4(1, 16, 64, alternates=False)
    assert numbers_of(weight, 0).shape == (16, 64)

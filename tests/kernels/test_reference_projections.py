"""Norms, activations and linears against their formulas in fp64; packed weights against what they stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from streamserve_kernels import (
    block_weight,
    blocked_linear,
    blocked_linear_residual,
    can_block,
    gated_activation,
    head_squares,
    int4_linear,
    layer_norm,
    linear,
    linear_residual,
    norm_all_heads_,
    norm_gated_linear,
    norm_linear,
    pack_eight_bits,
    pack_four_bits,
    rms_norm,
    rms_norm_residual,
)
from streamserve_kernels.reference.projections.int4 import FEW_ROWS, Int4Weight

EPS = 1e-5
HALF_STEP = 2.0**-8
"""Relative rounding of bf16."""


def random(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)


def rms_norm_fp64(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    return wide / (wide.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight.double()


def close(actual: Tensor, expected: Tensor) -> None:
    assert actual.dtype is not torch.float64
    tolerance = 1e-5 if actual.dtype is torch.float32 else HALF_STEP
    torch.testing.assert_close(actual.double(), expected, atol=tolerance * expected.abs().max().item(), rtol=tolerance)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rms_norm_in_every_mix_of_dtypes(dtype: torch.dtype, weight_dtype: torch.dtype) -> None:
    x, weight = random(3, 5, 64, dtype=dtype) * 10, random(64, dtype=weight_dtype)
    normed = rms_norm(x, weight, EPS)
    assert normed.dtype is dtype
    close(normed, rms_norm_fp64(x, weight))
    residual = random(3, 5, 65, dtype=dtype)[..., :64].contiguous()
    expected = rms_norm_fp64(x, weight) + residual.double()
    onto = rms_norm_residual(x, weight, EPS, residual)
    assert onto.dtype is dtype
    torch.testing.assert_close(onto.double(), expected, atol=2 * HALF_STEP * expected.abs().max().item(), rtol=2 * HALF_STEP)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_heads_normed_together_are_one_norm_and_in_two_shares_too(dtype: torch.dtype) -> None:
    qkv, q_norm, k_norm = random(3, 48 + 16 + 16, dtype=dtype), random(48), random(16)
    queries, keys, values = qkv.split([48, 16, 16], dim=1)
    whole = qkv.clone()
    norm_all_heads_(whole, q_norm, k_norm, EPS)
    close(whole, torch.cat([rms_norm_fp64(queries, q_norm), rms_norm_fp64(keys, k_norm), values.double()], dim=1))
    shares = [torch.cat([each.chunk(2, dim=1)[half] for each in (queries, keys, values)], dim=1) for half in range(2)]
    squares = head_squares(shares[0], 24, 8) + head_squares(shares[1], 24, 8)
    for half, share in enumerate(shares):
        norm_all_heads_(share, q_norm.chunk(2)[half], k_norm.chunk(2)[half], EPS, squares=squares, shares=2)
        expected = torch.cat([each.chunk(2, dim=1)[half] for each in whole.split([48, 16, 16], dim=1)], dim=1)
        close(share, expected.double())


def test_layer_norm() -> None:
    x, weight, bias = random(4, 64) + 3, random(64), random(65)[:64]
    wide = x.double()
    centred = wide - wide.mean(-1, keepdim=True)
    expected = centred / (centred.pow(2).mean(-1, keepdim=True) + EPS).sqrt() * weight.double() + bias.double()
    close(layer_norm(x, weight, bias, EPS), expected)


def test_gated_activations_take_the_gate_from_the_first_half() -> None:
    x = random(4, 64)
    gate, up = x[:, :32].double(), x[:, 32:].double()
    close(gated_activation(x, "silu"), gate * torch.sigmoid(gate) * up)
    close(gated_activation(x, "gelu_tanh"), F.gelu(gate, approximate="tanh") * up)


def test_fused_linears_are_their_parts() -> None:
    x, norm, weight, bias, residual = random(4, 64), random(64), random(96, 64), random(96), random(4, 96)
    wide, normed = x.double(), rms_norm_fp64(x, norm)
    close(linear(x, weight, bias), wide @ weight.double().T + bias.double())
    close(linear_residual(x, weight, residual, bias), residual.double() + wide @ weight.double().T + bias.double())
    close(norm_linear(x, norm, EPS, weight, bias), normed @ weight.double().T + bias.double())
    gate, up = (normed @ weight.double().T).chunk(2, dim=1)
    close(norm_gated_linear(x, norm, EPS, weight, "silu"), F.silu(gate) * up)
    close(norm_gated_linear(x, norm, EPS, weight, "gelu_tanh"), F.gelu(gate, approximate="tanh") * up)


def test_a_residual_is_not_overwritten() -> None:
    residual = random(4, 96)
    before = residual.clone()
    linear_residual(random(4, 64), random(96, 64), residual)
    assert torch.equal(residual, before)


@pytest.mark.parametrize("rows", [1, 7, 40])
def test_a_blocked_weight_multiplies_like_the_weight(rows: int) -> None:
    weight, bias = random(96, 64, dtype=torch.bfloat16), random(96, dtype=torch.bfloat16)
    if not can_block(weight.dtype, weight.device):
        pytest.skip("no oneDNN for bf16 on this CPU")
    blocked = block_weight(weight)
    assert blocked.shape == weight.shape
    x, residual = random(rows, 64, dtype=torch.bfloat16), random(rows, 96, dtype=torch.bfloat16)
    before = residual.clone()
    product = x.double() @ weight.double().T
    close(blocked_linear(x, blocked), product)
    close(blocked_linear(x, blocked, bias), product + bias.double())
    close(blocked_linear_residual(x, blocked, residual), product + residual.double())
    close(blocked_linear_residual(x, blocked, residual, bias), product + bias.double() + residual.double())
    view = random(rows, 2, 64, dtype=torch.bfloat16)[:, 0]
    close(blocked_linear(view, blocked), view.double() @ weight.double().T)
    assert torch.equal(residual, before)


@pytest.mark.parametrize(("dtype", "device"), [(torch.float32, "cpu"), (torch.float16, "cpu"), (torch.bfloat16, "meta")])
def test_only_bf16_on_a_cpu_is_blocked(dtype: torch.dtype, device: str) -> None:
    assert not can_block(dtype, torch.device(device))


def _like(rows: int, expanded: Tensor | None) -> Tensor:
    return torch.empty(rows, 96, dtype=torch.bfloat16) if expanded is None else expanded


def four_bits(rows: int, expanded: Tensor | None = None) -> tuple[Int4Weight, Tensor]:
    """A packed weight and, in fp64, what it stands for."""
    quants = torch.randint(0, 16, (rows, 96), dtype=torch.uint8)
    scale, zero = torch.rand(rows, 3).bfloat16(), torch.randn(rows, 3).bfloat16()
    weight = (quants.double() - 8).view(rows, 3, 32) * scale.double().unsqueeze(2) + zero.double().unsqueeze(2)
    return pack_four_bits(quants, scale, zero, _like(rows, expanded)), weight.flatten(1)


def eight_bits(rows: int, expanded: Tensor | None = None) -> tuple[Int4Weight, Tensor]:
    quants = torch.randint(-128, 128, (rows, 96), dtype=torch.int8)
    quants[0, :2] = torch.tensor([-128, 127])
    scale = torch.rand(rows, 3).bfloat16()
    weight = quants.double().view(rows, 3, 32) * scale.double().unsqueeze(2)
    return pack_eight_bits(quants, scale, _like(rows, expanded)), weight.flatten(1)


@pytest.mark.parametrize("make", [four_bits, eight_bits])
@pytest.mark.parametrize("rows", [1, 2, FEW_ROWS, FEW_ROWS + 1, 40])
def test_a_packed_weight_multiplies_like_what_it_stands_for(make: type, rows: int) -> None:
    packed, weight = make(4160)
    x, bias = random(rows, 96, dtype=torch.bfloat16), random(4160, dtype=torch.bfloat16)
    close(int4_linear(x, packed), x.double() @ weight.T)
    close(int4_linear(x, packed, bias), x.double() @ weight.T + bias.double())


@pytest.mark.parametrize("make", [four_bits, eight_bits])
def test_packing_expands_the_weight_in_place(make: type) -> None:
    expanded = torch.empty(64, 96, dtype=torch.bfloat16)
    _, weight = make(64, expanded)
    close(expanded, weight)


def test_one_packed_product_serves_inputs_that_are_views() -> None:
    packed, weight = four_bits(64)
    x = random(3, 2, 96, dtype=torch.bfloat16)[:, 1]
    close(int4_linear(x, packed), x.double() @ weight.T)

"""Routing and mixtures of experts in Triton against the reference in fp32, for all numbers of rows with a path of their own."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from streamserve_kernels.reference import experts as reference
from streamserve_kernels.reference.experts import Routes, RoutingRule
from tests.support.kernel_cases import DEVICE, DTYPES, LIMITS, random, relative_error, triton_area

experts = triton_area("experts")
dense = triton_area("experts.dense")

EPS = 1e-6
ROWS = [1, 2, 19, 70]
RULES = [RoutingRule(3, renormalizes=False), RoutingRule(2, scale=2.5), RoutingRule(3, "sigmoid", scale=1.5)]


def routed(rows: int, num_experts: int, hidden: int, rule: RoutingRule, dtype: torch.dtype) -> tuple[Routes, Routes]:
    """Tokens routed by Triton, and by the reference from the same numbers."""
    x, norm = random(rows, hidden, dtype=dtype), random(hidden, dtype=dtype)
    router, bias = random(num_experts, hidden, dtype=dtype) / hidden**0.5, random(num_experts, dtype=dtype)
    choice_bias = random(num_experts) if rule.scoring == "sigmoid" else None
    options = {"bias": bias, "choice_bias": choice_bias}
    actual = experts.norm_route(x, norm, EPS, router, rule, **options)
    wide = {name: None if value is None else value.float() for name, value in options.items()}
    return actual, reference.norm_route(x.float(), norm.float(), EPS, router.float(), rule, **wide)


def dense_weights(routes: Routes, num_experts: int) -> Tensor:
    return torch.zeros(len(routes.weights), num_experts, device=DEVICE).scatter_(1, routes.expert_ids.long(), routes.weights)


@pytest.mark.parametrize("rows", ROWS)
@pytest.mark.parametrize("rule", RULES)
def test_routes_are_those_of_the_reference(rule: RoutingRule, rows: int) -> None:
    actual, expected = routed(rows, 12, 48, rule, torch.float32)
    assert torch.equal(actual.expert_ids, expected.expert_ids)
    assert relative_error(actual.weights, expected.weights) < 1e-5
    assert relative_error(actual.normed, expected.normed) < 1e-5


@pytest.mark.parametrize("rows", [1, 2])
def test_a_token_of_nan_goes_to_experts_that_exist_and_leaves_its_neighbours_alone(rows: int) -> None:
    x, router = random(rows, 48), random(5, 48)
    x[-1] = torch.nan
    routes = experts.norm_route(x, torch.ones(48, device=DEVICE), EPS, router, RoutingRule(3))
    assert len(set(routes.expert_ids[-1].tolist())) == 3
    assert 0 <= int(routes.expert_ids.min()) <= int(routes.expert_ids.max()) < 5
    out = experts.experts_residual(torch.zeros_like(x), routes, random(5, 32, 48), random(5, 48, 16), "silu")
    assert bool(out[-1].isnan().all())
    assert bool(out[:-1].isfinite().all())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "num_experts", "hidden", "inner"), [(1, 4, 34, 72), (2, 3, 34, 72), (19, 2, 48, 24)])
def test_what_experts_add_agrees_with_the_reference(
    rows: int, num_experts: int, hidden: int, inner: int, dtype: torch.dtype
) -> None:
    gate_up = random(num_experts, 2 * inner, hidden, dtype=dtype) / hidden**0.5
    down = random(num_experts, hidden, inner, dtype=dtype) / inner**0.5
    biases = {
        "gate_up_bias": random(num_experts, 2 * inner, dtype=dtype),
        "down_bias": random(num_experts, hidden, dtype=dtype),
    }
    residual = random(rows, hidden, dtype=dtype)
    routes, _ = routed(rows, num_experts, hidden, RoutingRule(2), dtype)
    for activation, options in (("silu", {}), ("clamped_silu", biases)):
        wide = Routes(routes.normed.float(), routes.expert_ids, routes.weights)
        expected = reference.experts_residual(
            residual.float().clone(), wide, gate_up.float(), down.float(), activation,
            **{name: bias.float() for name, bias in options.items()},
        )  # fmt: skip
        actual = experts.experts_residual(residual.clone(), routes, gate_up, down, activation, **options)
        assert relative_error(actual, expected) < LIMITS[dtype]


@pytest.mark.parametrize("rows", [1, 5])
def test_ranks_that_hold_some_experts_add_up_to_all(rows: int) -> None:
    gate_up, down, residual = random(4, 32, 48), random(4, 48, 16), random(rows, 48)
    routes, _ = routed(rows, 4, 48, RoutingRule(3), torch.float32)
    whole = experts.experts_residual(residual.clone(), routes, gate_up, down, "silu")
    parts = [
        experts.experts_residual(torch.zeros_like(residual), routes, gate_up[part], down[part], "silu", first_expert=part.start)
        for part in (slice(0, 1), slice(1, 4))
    ]
    assert relative_error(parts[0] + parts[1] + residual, whole) < 1e-5


@pytest.mark.parametrize("mean", [1, 10, 50, 200, 600])
def test_every_launch_that_a_batch_may_get_computes_the_same(mean: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launches of large batches, here for a few tokens: the interpreter would take minutes for that many."""
    dtype = torch.float16
    shapes = dense.product_shapes(mean * 4, 4, dtype)
    monkeypatch.setattr(dense, "product_shapes", lambda *_: shapes)
    gate_up, down = random(2, 48, 96, dtype=dtype) / 10, random(2, 96, 24, dtype=dtype) / 5
    residual = random(5, 96, dtype=dtype)
    routes, _ = routed(5, 2, 96, RoutingRule(2), dtype)
    wide = Routes(routes.normed.float(), routes.expert_ids, routes.weights)
    expected = reference.experts_residual(residual.float().clone(), wide, gate_up.float(), down.float(), "silu")
    assert relative_error(experts.experts_residual(residual.clone(), routes, gate_up, down, "silu"), expected) < LIMITS[dtype]


@pytest.mark.parametrize("rows", [2, 5])
def test_a_row_does_not_depend_on_its_batch_mates(rows: int) -> None:
    gate_up, down, router = random(3, 32, 48), random(3, 48, 16), random(3, 48)
    x, norm = random(rows, 48), torch.ones(48, device=DEVICE)

    def first_row(batch: Tensor) -> Tensor:
        routes = experts.norm_route(batch, norm, EPS, router, RoutingRule(2))
        out: Tensor = experts.experts_residual(batch.clone(), routes, gate_up, down, "silu")
        return out[:1]

    assert torch.equal(first_row(x), first_row(torch.cat([x[:1], random(rows - 1, 48)])))


@pytest.mark.gpu
def test_many_tokens_of_an_expert_agree_with_the_reference() -> None:
    """As many as down takes a grouped product of torch for, which multiplies bf16."""
    dtype = torch.bfloat16
    gate_up, down, residual = random(3, 512, 256, dtype=dtype) / 16, random(3, 256, 256, dtype=dtype) / 16, random(1500, 256)
    routes, _ = routed(1500, 3, 256, RoutingRule(2), dtype)
    assert dense.is_grouped(3000, down) == (torch.cuda.get_device_capability() >= (9, 0))
    wide = Routes(routes.normed.float(), routes.expert_ids, routes.weights)
    expected = reference.experts_residual(residual.clone(), wide, gate_up.float(), down.float(), "silu")
    actual = experts.experts_residual(residual.to(dtype), routes, gate_up, down, "silu")
    assert relative_error(actual, expected) < LIMITS[dtype]


def test_tokens_may_be_sorted_by_expert_for_a_grouped_product_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    gate_up, down, residual = random(4, 32, 48), random(4, 48, 16), random(9, 48)
    routes, _ = routed(9, 4, 48, RoutingRule(2), torch.float32)
    expected = experts.experts_residual(residual.clone(), routes, gate_up, down, "silu")

    def grouped_product(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
        parts = torch.tensor_split(x, ends[:-1].long().cpu())
        return torch.cat([part @ each.T for part, each in zip(parts, weight, strict=True)])

    monkeypatch.setattr(dense, "is_grouped", lambda *_: True)
    monkeypatch.setattr(dense, "grouped_product", grouped_product)
    assert relative_error(experts.experts_residual(residual.clone(), routes, gate_up, down, "silu"), expected) < 1e-5

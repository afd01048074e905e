"""Routing and mixtures of experts in torch against their formulas in fp64, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from streamserve_kernels.reference import experts as reference
from streamserve_kernels.reference.experts import Routes, RoutingRule

EPS = 1e-6
RULES = {
    "softmax": RoutingRule(3, renormalizes=False),
    "renormalized": RoutingRule(3, scale=2.5),
    "sigmoid": RoutingRule(3, "sigmoid", scale=1.5),
    "plain sigmoid": RoutingRule(3, "sigmoid", renormalizes=False),
}


def expected_routes(
    normed: Tensor, router: Tensor, rule: RoutingRule, bias: Tensor, choice_bias: Tensor
) -> list[dict[int, float]]:
    """Of every token, its experts and their weights."""
    found = []
    for row in normed.double():
        logits = router.double() @ row + bias.double()
        scores = torch.sigmoid(logits) if rule.scoring == "sigmoid" else torch.softmax(logits, dim=0)
        chosen = sorted(range(len(logits)), key=lambda expert: -float(scores[expert] + choice_bias[expert]))[: rule.top_k]
        total = sum(float(scores[expert]) for expert in chosen) if rule.renormalizes else 1.0
        found.append({expert: float(scores[expert]) / total * rule.scale for expert in chosen})
    return found


@pytest.mark.parametrize("name", RULES)
def test_a_token_goes_to_the_experts_of_the_highest_scores(name: str) -> None:
    rule, x, router = RULES[name], torch.randn(9, 32), torch.randn(7, 32)
    bias, choice_bias, norm = torch.randn(7), torch.randn(7) / 4, torch.rand(32) + 0.5
    if rule.scoring == "softmax":
        choice_bias.zero_()
    routes = reference.norm_route(x, norm, EPS, router, rule, bias=bias, choice_bias=choice_bias)
    wide = x.double()
    torch.testing.assert_close(
        routes.normed.double(), wide * (wide.square().mean(1, True) + EPS).rsqrt() * norm, atol=1e-5, rtol=0
    )
    actual = [
        dict(zip(ids, weights, strict=True))
        for ids, weights in zip(routes.expert_ids.tolist(), routes.weights.tolist(), strict=True)
    ]
    for mine, theirs in zip(actual, expected_routes(routes.normed, router, rule, bias, choice_bias), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-4)


def test_of_equal_scores_the_first_expert_is_chosen_and_nan_is_never() -> None:
    router = torch.zeros(5, 4)
    router[1] = torch.nan
    routes = reference.norm_route(torch.ones(2, 4), torch.ones(4), EPS, router, RoutingRule(3))
    assert routes.expert_ids.tolist() == [[0, 1, 2]] * 2 or routes.expert_ids.tolist() == [[0, 2, 3]] * 2


@pytest.mark.parametrize("activation", ["silu", "clamped_silu"])
@pytest.mark.parametrize("tokens", [1, 6])
def test_a_token_gets_the_weighted_sum_of_its_experts_and_its_residual(tokens: int, activation: Any) -> None:
    gate_up, down = torch.randn(5, 2 * 16, 12) * 2, torch.randn(5, 12, 16)
    gate_up_bias, down_bias = torch.randn(5, 32), torch.randn(5, 12)
    normed, residual, weights = torch.randn(tokens, 12), torch.randn(tokens, 12), torch.rand(tokens, 2)
    ids = torch.stack([torch.randperm(5)[:2] for _ in range(tokens)]).int()
    expected = residual.double()
    for token in range(tokens):
        for expert, weight in zip(ids[token].tolist(), weights[token].tolist(), strict=True):
            both = gate_up[expert].double() @ normed[token].double() + gate_up_bias[expert]
            gate, up = both[::2], both[1::2]
            if activation == "silu":
                inner = torch.nn.functional.silu(gate) * up
            else:
                gate = gate.clamp(max=7)
                inner = gate * torch.sigmoid(1.702 * gate) * (up.clamp(-7, 7) + 1)
            expected[token] += weight * (down[expert].double() @ inner + down_bias[expert])
    routes = Routes(normed, ids, weights)
    biases = {"gate_up_bias": gate_up_bias, "down_bias": down_bias}
    actual = reference.experts_residual(residual.clone(), routes, gate_up, down, activation, **biases)
    torch.testing.assert_close(actual.double(), expected, atol=1e-4, rtol=1e-4)
    halves = [
        reference.experts_residual(
            torch.zeros_like(residual), routes, gate_up[part], down[part], activation,
            **{name: bias[part] for name, bias in biases.items()}, first_expert=part.start,
        )
        for part in (slice(0, 2), slice(2, 5))
    ]  # fmt: skip
    torch.testing.assert_close((halves[0] + halves[1] + residual).double(), expected, atol=1e-4, rtol=1e-4)

"""Mixtures of experts in torch: which experts a token goes to, and the weighted sum of what they make of it.

On a CPU the experts that are hit are multiplied one after another, each with the tokens that hit it.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from streamserve_kernels.reference.activations import Activation, gate_up_activation
from streamserve_kernels.reference.norms import rms_norm
from streamserve_kernels.reference.quantized_experts import ExpertsWeight, numbers_of

RouterScoring: TypeAlias = Literal["softmax", "sigmoid"]


class RoutingRule(NamedTuple):
    """How a router's logits choose experts and weigh them.

    top_k         experts of a token
    scoring       what a logit becomes: its share of all of them, or its sigmoid
    renormalizes  the weights of the chosen are divided by their sum
    scale         factor of the weights in the end
    """

    top_k: int
    scoring: RouterScoring = "softmax"
    renormalizes: bool = True
    scale: float = 1.0


class Routes(NamedTuple):
    """Where the tokens of a step go, and the tokens.

    normed      [tokens, hidden]  what the experts multiply
    expert_ids  [tokens, top_k]   int32, of each token all different
    weights     [tokens, top_k]   fp32
    by_expert   the tokens of each expert; its form is the implementation's
    """

    normed: Tensor
    expert_ids: Tensor
    weights: Tensor
    by_expert: object = None


def norm_route(
    x: Tensor,
    norm_weight: Tensor,
    eps: float,
    router_weight: Tensor,
    rule: RoutingRule,
    *,
    bias: Tensor | None = None,
    choice_bias: Tensor | None = None,
) -> Routes:
    """Norm the tokens and choose the experts of each (Shazeer et al., 2017, https://arxiv.org/abs/1701.06538).

    x              [tokens, hidden]   bf16|fp16|fp32
    norm_weight    [hidden]           of the RMS norm before
    router_weight  [experts, hidden]  dtype of x
    bias           [experts]          of the logits; any float dtype
    choice_bias    [experts]          fp32, added to the scores by which experts are chosen, and not to those by which they are
                                      weighed (Wang et al., 2024, https://arxiv.org/abs/2408.15664)
    returns        routes; logits are accumulated in fp32. Of equal scores the expert of the lower number is chosen
    """
    normed = rms_norm(x, norm_weight, eps)
    logits = F.linear(normed.float(), router_weight.float(), None if bias is None else bias.float())
    scores = logits.sigmoid() if rule.scoring == "sigmoid" else logits.softmax(dim=-1)
    choice = scores if choice_bias is None else scores + choice_bias
    order = choice.nan_to_num(nan=-torch.inf, neginf=-torch.inf).sort(dim=-1, descending=True, stable=True).indices
    chosen = order[:, : rule.top_k]
    weights = scores.gather(1, chosen)
    if rule.renormalizes:
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
    return Routes(normed, chosen.to(torch.int32), weights * rule.scale)


def experts_residual(
    residual: Tensor,
    routes: Routes,
    gate_up: ExpertsWeight,
    down: ExpertsWeight,
    activation: Activation,
    *,
    gate_up_bias: Tensor | None = None,
    down_bias: Tensor | None = None,
    first_expert: int = 0,
) -> Tensor:
    """residual + the weighted sum of each token's experts, of which each is down(act(gate) * up).

    residual      [tokens, hidden]            dtype of the tokens; not to be used afterwards
    gate_up       [experts, 2 * inner, hidden]  same dtype, or quantized; rows of the gate and of up alternate
    down          [experts, hidden, inner]      same dtype, or quantized
    gate_up_bias  [experts, 2 * inner], down_bias [experts, hidden]  same dtype
    first_expert  the number of the first of these experts; what goes to others is left out
    returns       [tokens, hidden]            dtype of the tokens; the sum is fp32
    """
    total = residual.float()

    def make(expert: int, x: Tensor) -> Tensor:
        inner = F.linear(x, numbers_of(gate_up, expert).to(x.dtype), None if gate_up_bias is None else gate_up_bias[expert])
        gate, up = inner.view(len(x), -1, 2).unbind(2)
        gated = gate_up_activation(gate, up, activation)
        return F.linear(gated, numbers_of(down, expert).to(x.dtype), None if down_bias is None else down_bias[expert]).float()

    if len(total) == 1:
        # Few calls: for a single token each counts.
        for expert, weight in zip(routes.expert_ids[0].tolist(), routes.weights[0].tolist(), strict=True):
            if 0 <= expert - first_expert < gate_up.shape[0]:
                total.add_(make(expert - first_expert, routes.normed), alpha=weight)
        return total.to(residual.dtype)
    top_k, weights = routes.expert_ids.shape[1], routes.weights.view(-1, 1)
    flat = routes.expert_ids.flatten() - first_expert
    order = flat.argsort(stable=True)
    experts, counts = torch.unique(flat, return_counts=True)
    for expert, places in zip(experts.tolist(), torch.split(order, counts.tolist()), strict=True):
        if 0 <= expert < gate_up.shape[0]:
            tokens = places // top_k
            total.index_add_(0, tokens, make(expert, routes.normed[tokens]).mul_(weights[places]))
    return total.to(residual.dtype)

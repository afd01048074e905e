"""The function by which transformers' mixtures of experts multiply, where a class has that interface.

Registered with transformers under a name of its own, so that it replaces nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, grouped_mm_experts_forward

EXPERTS_NAME = "streamserve"


def _experts(module: nn.Module, hidden: Tensor, expert_ids: Tensor, shares: Tensor) -> Tensor:
    """hidden [tokens, hidden_size], expert_ids and shares [tokens, experts of a token] -> the same shape as hidden

    On a CPU a loop over the experts that are hit, which is the class's own; on a GPU grouped products, which need no host.
    """
    if hidden.is_meta:
        return torch.empty_like(hidden)
    if hidden.is_cpu:
        # The class's own forward chooses by the name that led here; what it wraps is the loop.
        loop = type(module).forward.__wrapped__  # type: ignore[attr-defined]
        result: Tensor = loop(module, hidden, expert_ids, shares)
    else:
        result = grouped_mm_experts_forward(module, hidden, expert_ids, shares)
    return result


ALL_EXPERTS_FUNCTIONS.register(EXPERTS_NAME, _experts)

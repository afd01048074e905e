"""Random weights for measuring and testing without a checkpoint."""

from __future__ import annotations

import torch

from streamserve.models.architectures.base import CausalModel
from streamserve.models.layers.norm import LayerNorm, RmsNorm

STD = 0.02
NOISE = 1 << 20
"""Numbers drawn; larger weights repeat them, so that billions of weights cost a copy and not a generator's time."""


def randomize(model: CausalModel, seed: int = 0) -> None:
    """Fill every weight with normal noise of standard deviation 0.02, norms with one, in place; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    # A prime length: rows of a matrix must not repeat each other.
    noise = torch.randn(NOISE + 7, generator=generator).mul_(STD)
    for module in model.modules():
        if isinstance(module, RmsNorm | LayerNorm):
            module.weight.fill_(1.0)
    norms = {id(module.weight) for module in model.modules() if isinstance(module, RmsNorm | LayerNorm)}
    weights = [parameter for parameter in model.parameters() if id(parameter) not in norms]
    # All weights share a place; only norms may be of another dtype.
    noise = noise.to(weights[0])
    for weight in weights:
        _tile(weight.view(-1), noise)


def _tile(target: torch.Tensor, noise: torch.Tensor) -> None:
    period = noise.shape[0]
    whole = target.shape[0] // period * period
    target[:whole].view(-1, period).copy_(noise)
    target[whole:].copy_(noise[: target.shape[0] - whole])

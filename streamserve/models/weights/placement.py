"""Where a model's tensors live, of which type they are, and which share of them this rank holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from streamserve.errors import ConfigError
from streamserve.models.weights.storage import WeightStorage


@dataclass(frozen=True)
class Placement:
    """What decides how a model's weights are allocated.

    dtype             of activations, and of weights that have no form of their own
    rank, world_size  the model's divisible weights are cut into `world_size` equal parts, of which this rank holds one
    storage           how the checkpoint stores its weights, by which each linear's form is chosen
    """

    dtype: torch.dtype
    device: torch.device
    rank: int = 0
    world_size: int = 1
    storage: WeightStorage = field(default_factory=WeightStorage)

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        """An uninitialised parameter, of the placement's dtype unless another is given."""
        return nn.Parameter(torch.empty(shape, dtype=dtype or self.dtype, device=self.device), requires_grad=False)

    def share(self, size: int, what: str) -> int:
        """This rank's part of `size`. Raises `ConfigError`, naming `what`, when it can't be divided equally."""
        if size % self.world_size:
            raise ConfigError(f"{size} {what} can't be divided among {self.world_size} ranks: use a number that divides them")
        return size // self.world_size

"""Where a model's tensors live, of which type they are, and which share of them this rank holds."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import nn

from streamserve.models.communicator import Apart, Communicator
from streamserve.models.division import equal_share
from streamserve.models.weights.storage import WeightStorage


@dataclass(frozen=True)
class Placement:
    """What decides how a model's weights are allocated.

    dtype            of activations, and of weights that have no form of their own
    communicator     the ranks that share the model's divisible weights out among each other; this one is one of them
    storage          how the checkpoint stores its weights, by which each linear's form is chosen
    divides_experts  of a mixture each rank holds some experts, instead of a part of every one
    kv_cache         dtype of the KV cache where it is not `dtype`
    """

    dtype: torch.dtype
    device: torch.device
    communicator: Communicator = field(default_factory=Apart)
    storage: WeightStorage = field(default_factory=WeightStorage)
    divides_experts: bool = False
    kv_cache: torch.dtype | None = None

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        """An uninitialised parameter, of the placement's dtype unless another is given."""
        return nn.Parameter(torch.empty(shape, dtype=dtype or self.dtype, device=self.device), requires_grad=False)

    @property
    def kv_dtype(self) -> torch.dtype:
        """Of the KV cache."""
        return self.kv_cache or self.dtype

    @property
    def rank(self) -> int:
        return self.communicator.rank

    @property
    def world_size(self) -> int:
        return self.communicator.world_size

    def share(self, pieces: int, what: str) -> range:
        """This rank's part of so many pieces. Raises `ConfigError`, naming `what`, when they can't be divided equally."""
        return equal_share(pieces, self.rank, self.world_size, what)

"""Which tensor of a checkpoint fills which part of a model.

A fused linear is one tensor whose row ranges are the destinations of several checkpoint tensors, so loading is a copy into
place and nothing is concatenated afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Destination:
    """Where one tensor of the checkpoint goes.

    name    as transformers names it
    tensor  a view of the parameter, of the tensor's shape
    offset  added to what is stored (Gemma stores its norm weights less one)
    """

    name: str
    tensor: Tensor
    offset: float = 0.0


class Stored(nn.Module, ABC):
    """A module whose parameters come out of a checkpoint."""

    @abstractmethod
    def destinations(self) -> Iterator[Destination]:
        """Every tensor it needs, each exactly once."""

"""What a loader asks of a checkpoint's files."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator

from torch import Tensor


class WeightSource(ABC):
    """A checkpoint's tensors, one after another in the order of its files."""

    @property
    @abstractmethod
    def num_bytes(self) -> int:
        """Of all tensors as they are stored."""

    @abstractmethod
    def tensors(self) -> Iterator[tuple[str, Tensor, int]]:
        """(name, tensor on the CPU, its bytes as stored); the tensor is read-only and valid until the next one."""

"""Norms, which kernels fuse with what follows them: here are their weights."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from streamserve.models.weights.destination import Destination, Stored
from streamserve.models.weights.placement import Placement


class RmsNorm(Stored):
    """The weight of an RMS norm."""

    def __init__(self, name: str, size: int, place: Placement, *, offset: float = 0.0) -> None:
        """offset  added to the stored weight; then the sum is kept in fp32, where it is exact"""
        super().__init__()
        self._name, self._offset = name, offset
        self.weight = place.empty(size, dtype=torch.float32 if offset else None)

    def destinations(self) -> Iterator[Destination]:
        yield Destination(f"{self._name}.weight", self.weight, self._offset)


class LayerNorm(Stored):
    """Weight and bias of a layer norm."""

    def __init__(self, name: str, size: int, place: Placement) -> None:
        super().__init__()
        self._name = name
        self.weight = place.empty(size)
        self.bias = place.empty(size)

    def destinations(self) -> Iterator[Destination]:
        yield Destination(f"{self._name}.weight", self.weight)
        yield Destination(f"{self._name}.bias", self.bias)

"""Norms over the hidden dimension. Linears fuse an RMS norm that stands before them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from streamserve.models.weights.destination import Destination, Stored, copied
from streamserve.models.weights.placement import Placement
from streamserve_kernels import layer_norm, rms_norm


class RmsNorm(Stored):
    """An RMS norm: weight [size], and eps."""

    def __init__(self, name: str, size: int, place: Placement, *, eps: float, offset: float = 0.0) -> None:
        """offset  added to the stored weight; then the sum is kept in fp32, where it is exact"""
        super().__init__()
        self._name, self._offset = name, offset
        self.eps = eps
        self.weight = place.empty(size, dtype=torch.float32 if offset else None)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape and dtype"""
        return rms_norm(x, self.weight, self.eps)

    def destinations(self) -> Iterator[Destination]:
        yield copied(f"{self._name}.weight", self.weight, offset=self._offset)


class LayerNorm(Stored):
    """A layer norm: weight and bias [size], and eps."""

    def __init__(self, name: str, size: int, place: Placement, *, eps: float) -> None:
        super().__init__()
        self._name = name
        self.eps = eps
        self.weight = place.empty(size)
        self.bias = place.empty(size)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape and dtype"""
        return layer_norm(x, self.weight, self.bias, self.eps)

    def destinations(self) -> Iterator[Destination]:
        yield copied(f"{self._name}.weight", self.weight)
        yield copied(f"{self._name}.bias", self.bias)

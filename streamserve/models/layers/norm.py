"""Norms over the hidden dimension. Linears fuse an RMS norm that stands before them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from streamserve.models.weights.destination import Destination, Region, Stored, copied
from streamserve.models.weights.placement import Placement
from streamserve_kernels import layer_norm, rms_norm, rms_norm_residual


class RmsNorm(Stored):
    """An RMS norm: weight [size], and eps."""

    def __init__(
        self,
        name: str,
        size: int,
        place: Placement,
        *,
        eps: float,
        offset: float = 0.0,
        scale: float = 1.0,
        taken: range | None = None,
    ) -> None:
        """The norm multiplies with (stored weight + offset) * scale, kept in fp32 where that is not what is stored.

        taken  what this rank keeps of the `size` numbers; None keeps all
        """
        super().__init__()
        self._name, self._offset, self._scale = name, offset, scale
        self._region = Region((size,), (taken or range(size),))
        self.eps = eps
        self.weight = place.empty(len(self._region.ranges[0]), dtype=torch.float32 if offset or scale != 1.0 else None)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> the same shape and dtype"""
        return rms_norm(x, self.weight, self.eps)

    def onto(self, residual: Tensor, x: Tensor) -> Tensor:
        """residual [rows, size] + forward(x); the residual is not to be used afterwards."""
        return rms_norm_residual(x, self.weight, self.eps, residual)

    def destinations(self) -> Iterator[Destination]:
        yield copied(f"{self._name}.weight", self.weight, self._region, offset=self._offset, scale=self._scale)


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

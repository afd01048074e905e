"""Weights in the place where they are used: linears, norms and embeddings that know which checkpoint tensors fill them.

A fused linear is one tensor whose row ranges are the destinations of several checkpoint tensors, so loading is a copy into
place and nothing is concatenated afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamserve_kernels import Weight


@dataclass(frozen=True)
class Placement:
    """Where a model's tensors live and of which type they are."""

    dtype: torch.dtype
    device: torch.device

    def empty(self, *shape: int, dtype: torch.dtype | None = None) -> nn.Parameter:
        return nn.Parameter(torch.empty(shape, dtype=dtype or self.dtype, device=self.device), requires_grad=False)


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


class Embedding(Stored):
    """A table of vectors, [rows, size]."""

    def __init__(self, name: str, rows: int, size: int, place: Placement) -> None:
        super().__init__()
        self.name = name
        self.weight = place.empty(rows, size)

    def destinations(self) -> Iterator[Destination]:
        yield Destination(f"{self.name}.weight", self.weight)


class Linear(Stored):
    """One linear layer; its output rows may be several of the checkpoint's.

    weight  [sum of parts, in_features], or another form of it that the loader put in its place
    bias    [sum of parts] or None
    """

    weight: Weight
    bias: Tensor | None

    def __init__(
        self, prefix: str, parts: Mapping[str, int], in_features: int, place: Placement, *, bias: bool = False
    ) -> None:
        """prefix + part name + ".weight" is a tensor of the checkpoint; the part's value is its number of rows."""
        super().__init__()
        self.names = [prefix + part for part in parts]
        self._rows = list(parts.values())
        self.weight = place.empty(sum(self._rows), in_features)
        self.bias = place.empty(sum(self._rows)) if bias else None

    def destinations(self) -> Iterator[Destination]:
        start = 0
        for name, rows in zip(self.names, self._rows, strict=True):
            if isinstance(self.weight, Tensor):
                yield Destination(f"{name}.weight", self.weight[start : start + rows])
            if self.bias is not None:
                yield Destination(f"{name}.bias", self.bias[start : start + rows])
            start += rows

    def replace_weight(self, packed: Weight) -> None:
        """Take another form of the weight instead of the tensor, which is freed unless it is that form."""
        del self.weight
        self.weight = packed


class TiedLinear(Linear):
    """A linear whose weight is an embedding's table."""

    def __init__(self, table: Embedding) -> None:
        nn.Module.__init__(self)
        self.names = [table.name]
        self.weight = table.weight
        self.bias = None

    def destinations(self) -> Iterator[Destination]:
        return iter(())


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

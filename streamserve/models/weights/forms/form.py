"""What every form of a weight is to its linear and to the loader."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from streamserve.models.weights.destination import Destination, Region
from streamserve.models.weights.noise import tile
from streamserve.models.weights.placement import Placement
from streamserve_kernels import Activation, gated_activation, rms_norm


@dataclass(frozen=True)
class WeightPart:
    """Rows of a weight that come out of one tensor of the checkpoint.

    name    of the checkpoint's linear: its weight is name + ".weight"
    region  of that weight
    """

    name: str
    region: Region

    @property
    def num_rows(self) -> int:
        return len(self.region.ranges[0])


@dataclass(frozen=True)
class WeightSpec:
    """A linear's weight [out_features, in_features], as much of it as this rank holds.

    parts  one below the other
    table  an embedding's vectors [out_features, in_features], which are this weight as well; None allocates
    """

    parts: tuple[WeightPart, ...]
    table: nn.Parameter | None = None

    @property
    def out_features(self) -> int:
        return sum(part.num_rows for part in self.parts)

    @property
    def in_features(self) -> int:
        return len(self.parts[0].region.ranges[1])

    def split(self, tensor: Tensor) -> Iterator[tuple[WeightPart, Tensor]]:
        """Each part, and its rows of a tensor [out_features, ...]."""
        yield from zip(self.parts, torch.split(tensor, [part.num_rows for part in self.parts]), strict=True)


class Weight(nn.Module, ABC):
    """What a linear multiplies with, [out_features, in_features], and the kernels that do so.

    dtype  of what it multiplies, whatever its own numbers are stored as

    Every weight has a `multiply`; those whose kernels fuse what stands before or after it override the rest.
    """

    out_features: int
    in_features: int
    dtype: torch.dtype

    @abstractmethod
    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x [rows, in] @ weight.T + bias -> [rows, out]"""

    def after_norm(self, x: Tensor, norm_weight: Tensor, eps: float, bias: Tensor | None) -> Tensor:
        """multiply(rms_norm(x), bias)"""
        return self.multiply(rms_norm(x, norm_weight, eps), bias)

    def gated_after_norm(
        self, x: Tensor, norm_weight: Tensor, eps: float, activation: Activation, bias: Tensor | None
    ) -> Tensor:
        """act(gate) * up of after_norm(x) -> [rows, out / 2]; the gate's rows of the weight come first, then up's."""
        return gated_activation(self.after_norm(x, norm_weight, eps, bias), activation)

    def onto(self, residual: Tensor, x: Tensor, bias: Tensor | None) -> Tensor:
        """residual [rows, out] + multiply(x, bias); the residual's memory may be taken for the sum."""
        return self.multiply(x, bias).add_(residual)


class Form(Weight):
    """A weight that comes out of a checkpoint: its parameters, and which stored tensors fill them.

    Made with uninitialised parameters; once every destination is filled, `finish` makes it ready to multiply.
    """

    def __init__(self, spec: WeightSpec, place: Placement) -> None:
        super().__init__()
        self.out_features, self.in_features, self.dtype = spec.out_features, spec.in_features, place.dtype

    @abstractmethod
    def destinations(self) -> Iterator[Destination]:
        """What fills its parameters."""

    def randomize(self, noise: Tensor) -> None:
        """Fill its parameters with numbers like these, [many] of the model's dtype, instead."""
        for parameter in self.parameters():
            tile(parameter, noise)

    def finish(self) -> Form:
        """The form that multiplies with what has been filled, in the layout that its kernels want: this one, or another."""
        return self

"""Which tensors of a checkpoint fill which parts of a model.

A fused linear is one tensor whose row ranges are the destinations of several checkpoint tensors, and a rank may hold only a
range of the rows or columns of each: loading is a copy into place, and nothing is joined or cut afterwards.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from streamserve.models.weights.source import StoredTensor


@dataclass(frozen=True)
class Region:
    """A part of a stored tensor.

    whole   shape of the stored tensor
    ranges  what is taken of each dimension
    """

    whole: tuple[int, ...]
    ranges: tuple[range, ...]

    @classmethod
    def of(cls, *whole: int) -> Region:
        """All of a tensor."""
        return cls(whole, tuple(range(size) for size in whole))

    def rows(self, *rest: int) -> Region:
        """The same rows of a tensor [rows, *rest] that has something for each of them: biases, scales."""
        return Region((self.whole[0], *rest), (self.ranges[0], *(range(size) for size in rest)))

    def is_of(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape is the whole; tools store scales as [rows] and [rows, 1], or as [] and [1]."""
        stored, whole = ([size for size in each if size != 1] for each in (shape, self.whole))
        return stored == whole

    @property
    def slices(self) -> tuple[slice, ...]:
        return tuple(slice(taken.start, taken.stop) for taken in self.ranges)


@dataclass(frozen=True)
class Destination:
    """What becomes of one tensor of the checkpoint.

    name    as transformers names it
    region  the part of it that is needed
    fill    called with it once; it has the shape `region.whole`, but for dimensions of 1
    is_optional  checkpoints may be without it
    """

    name: str
    region: Region
    fill: Callable[[StoredTensor], None]
    is_optional: bool = False


def copied(name: str, target: Tensor, region: Region | None = None, *, offset: float = 0.0, scale: float = 1.0) -> Destination:
    """The destination of numbers that are copied as they are.

    target  a view of the parameter, of the region's shape
    region  None takes all of a tensor of the target's shape
    offset  added to what is stored (Gemma stores its norm weights less one)
    scale   of the sum
    """
    taken = region or Region.of(*target.shape)

    def fill(stored: StoredTensor) -> None:
        target.copy_(stored.values.reshape(taken.whole)[taken.slices])
        if offset:
            target.add_(offset)
        if scale != 1.0:
            target.mul_(scale)

    return Destination(name, taken, fill)


def gathered(wanted: Mapping[str, Region], use: Callable[[Mapping[str, Tensor]], None]) -> Iterator[Destination]:
    """The destinations of tensors that are worth something together: `use` is called with these parts of all of them."""
    arrived: dict[str, Tensor] = {}

    def receive(name: str, region: Region) -> Callable[[StoredTensor], None]:
        def fill(stored: StoredTensor) -> None:
            # What is stored is valid until the next tensor.
            arrived[name] = stored.values.reshape(region.whole)[region.slices].clone()
            if len(arrived) == len(wanted):
                use({each: arrived.pop(each) for each in wanted})

        return fill

    for name, region in wanted.items():
        yield Destination(name, region, receive(name, region))


def left_out(name: str, region: Region) -> Destination:
    """The destination of a tensor that only another rank keeps."""

    def fill(stored: StoredTensor) -> None:
        """Read nothing of it."""

    return Destination(name, region, fill)


class Stored(nn.Module, ABC):
    """A module whose parameters come out of a checkpoint."""

    @abstractmethod
    def destinations(self) -> Iterator[Destination]:
        """Every tensor it needs, each region exactly once."""

    def finish(self) -> None:
        """Make ready to run, once every destination is filled; called once."""

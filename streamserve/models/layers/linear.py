"""Linear layers, each one weight whose rows may be several of the checkpoint's tensors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from streamserve.models.layers.embedding import Embedding
from streamserve.models.weights.destination import Destination, Stored
from streamserve.models.weights.placement import Placement
from streamserve_kernels import Weight


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

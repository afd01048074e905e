"""What the ranks of one model exchange while they run it.

The layers whose weights are divided call it, on each rank's launch thread. Every rank makes the same calls in the same order,
because all get the same plans. Knows no processes and no devices: `worker.communication` implements it over those.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

Product = Callable[[Tensor, Tensor | None], Tensor]
"""What a linear makes of x [rows, k], added to a residual [rows, n] if there is one, whose memory the result may take."""


class Communicator(Protocol):
    """One rank's end of a group of ranks.

    What a call returns has the same bits on every rank, so that ranks that have the same rows sample the same tokens.
    """

    @property
    def rank(self) -> int: ...

    @property
    def world_size(self) -> int: ...

    def sum(self, x: Tensor) -> Tensor:
        """The sum over ranks of their x [rows, n]; `x` is not to be used afterwards."""
        ...

    def sum_products(self, product: Product, x: Tensor, residual: Tensor | None, width: int) -> Tensor:
        """residual + the sum over ranks of product(x): [rows, width].

        x         [rows, k]
        residual  [rows, width] that all ranks have alike, not to be used afterwards; None is zero

        Rows may be multiplied in pieces, so that some are exchanged while others are multiplied.
        """
        ...

    def gather(self, x: Tensor) -> Tensor:
        """The ranks' x [rows, n] side by side, in the order of ranks: [rows, world_size * n]."""
        ...


@dataclass(frozen=True)
class Apart:
    """A rank that exchanges nothing: the only one of its model, or one whose shapes count and whose numbers don't."""

    rank: int = 0
    world_size: int = 1

    def sum(self, x: Tensor) -> Tensor:
        return x

    def sum_products(self, product: Product, x: Tensor, residual: Tensor | None, width: int) -> Tensor:
        return product(x, residual)

    def gather(self, x: Tensor) -> Tensor:
        return x if self.world_size == 1 else x.new_zeros(x.shape[0], x.shape[1] * self.world_size)

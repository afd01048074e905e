"""Ranks on CPUs, over gloo, which exchanges through the ranks' memory or TCP.

Keeps no state of torch.distributed's own, so that a process may hold several groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from streamserve.errors import EngineDead
from streamserve.models.communicator import Product
from streamserve.worker.communication.base import COLLECTIVE_TIMEOUT_S
from streamserve.worker.communication.stores import Store


class GlooGroup:
    """A group of ranks on CPUs; satisfies `RankGroup`.

    store  where ranks find each other; the same one, and nothing else in it, on all

    Exchanges raise `EngineDead` when another rank has ended, or has not joined in within `timeout_s`.
    """

    def __init__(self, store: Store, rank: int, world_size: int, *, timeout_s: float = COLLECTIVE_TIMEOUT_S) -> None:
        self.rank, self.world_size = rank, world_size
        # torch's stubs list no operations of a group.
        self._group: Any = dist.ProcessGroupGloo(store, rank, world_size, timedelta(seconds=timeout_s))
        self._is_silent = False

    def sum(self, x: Tensor) -> Tensor:
        if not self._is_silent:
            _wait(self._group.allreduce([x]))
        return x

    def sum_products(self, product: Product, x: Tensor, residual: Tensor | None, width: int) -> Tensor:
        total = self.sum(product(x, None))
        return total if residual is None else total.add_(residual)

    def gather(self, x: Tensor) -> Tensor:
        parts = x.new_empty(self.world_size, *x.shape)
        if not self._is_silent:
            _wait(self._group.allgather([list(parts.unbind())], [x.contiguous()]))
        return side_by_side(parts)

    def smallest(self, number: int) -> int:
        numbers = torch.tensor([number])
        _wait(self._group.allreduce([numbers], dist.ReduceOp.MIN))
        return int(numbers)

    @contextmanager
    def silenced(self) -> Iterator[None]:
        self._is_silent = True
        try:
            yield
        finally:
            self._is_silent = False


def _wait(exchange: Any) -> None:
    try:
        exchange.wait()
    except RuntimeError as error:
        raise EngineDead(f"an exchange with another rank failed: {error}") from error


def side_by_side(parts: Tensor) -> Tensor:
    """parts [ranks, rows, n] -> [rows, ranks * n]; of one row the same memory."""
    return parts.transpose(0, 1).flatten(1)

"""Ranks on GPUs, over NCCL, on the worker's stream: what is exchanged inside a captured step is replayed with it.

One group a process: it is torch.distributed's own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from streamserve.worker.communication.base import COLLECTIVE_TIMEOUT_S
from streamserve.worker.communication.gloo import GlooGroup, side_by_side
from streamserve.worker.communication.stores import Store, part_of


class NcclGroup:
    """A group of ranks on GPUs; satisfies `RankGroup`.

    store  where ranks find each other; the same one, and nothing else in it, on all
    """

    def __init__(self, store: Store, rank: int, world_size: int, device: torch.device) -> None:
        self.rank, self.world_size = rank, world_size
        # Numbers of the host, which would otherwise wait for the device.
        self._host = GlooGroup(part_of(store, "host"), rank, world_size)
        dist.init_process_group(
            "nccl",
            store=part_of(store, "device"),
            rank=rank,
            world_size=world_size,
            timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
            device_id=device,
        )
        self._is_silent = False

    def sum(self, x: Tensor) -> Tensor:
        if not self._is_silent:
            dist.all_reduce(x)
        return x

    def sum_onto(self, residual: Tensor, x: Tensor) -> Tensor:
        return self.sum(x).add_(residual)

    def gather(self, x: Tensor) -> Tensor:
        parts = x.new_empty(self.world_size, *x.shape)
        if not self._is_silent:
            dist.all_gather_into_tensor(parts, x.contiguous())
        return side_by_side(parts)

    def smallest(self, number: int) -> int:
        return self._host.smallest(number)

    @contextmanager
    def silenced(self) -> Iterator[None]:
        self._is_silent = True
        try:
            yield
        finally:
            self._is_silent = False

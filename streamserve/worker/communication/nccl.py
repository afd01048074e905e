"""Ranks on GPUs: over NCCL, and where they are on one machine through memory that they map from each other.

All of it is queued on the worker's stream or joins it, so that what is exchanged inside a captured step is replayed with it.
One group a process: it is torch.distributed's own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Thread

import torch
import torch.distributed as dist
from torch import Tensor

from streamserve.models.communicator import Product
from streamserve.worker.communication.base import COLLECTIVE_TIMEOUT_S
from streamserve.worker.communication.gloo import GlooGroup, side_by_side
from streamserve.worker.communication.peers import INBOX_PIECES, PIECE_BYTES, PeerMemory
from streamserve.worker.communication.stores import Store, part_of
from streamserve_kernels import peer_gather, peer_sum

OVERLAP_ROWS = 3072
"""Rows from which products are exchanged in pieces; captured steps have fewer."""

PIECE_ROWS = 2048
"""Of pieces, at least: smaller ones are multiplied less efficiently."""

logger = logging.getLogger(__name__)


class NcclGroup:
    """A group of ranks on GPUs; satisfies `RankGroup`.

    Joins on a thread, which takes a second or two: the first exchange waits for it.

    store        where ranks find each other; the same one, and nothing else in it, on all
    maps_memory  GPUs of one machine map each other's memory, where they can
    """

    def __init__(self, store: Store, rank: int, world_size: int, device: torch.device, *, maps_memory: bool = True) -> None:
        self.rank, self.world_size = rank, world_size
        # Numbers of the host, which would otherwise wait for the device.
        self._host = GlooGroup(part_of(store, "host"), rank, world_size)
        self._is_silent = False
        self._swapping: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._adding: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._memory: PeerMemory | None = None
        self._failure: Exception | None = None
        maps_memory = maps_memory and self._is_alike(_machine())
        self._joining: Thread | None = Thread(target=self._join, args=(store, device, maps_memory), name="streamserve-join")
        self._joining.start()

    def sum(self, x: Tensor) -> Tensor:
        if self._is_silent:
            return x
        memory = self._joined()
        slots = None if memory is None else memory.slots_for_sum(x.numel(), x.itemsize)
        if slots is not None:
            return peer_sum(x, slots)
        dist.all_reduce(x)
        return x

    def sum_products(self, product: Product, x: Tensor, residual: Tensor | None, width: int) -> Tensor:
        if self._is_silent:
            return product(x, residual)
        memory = self._joined()
        if memory is not None and memory.has_inbox and len(x) >= OVERLAP_ROWS:
            return self._sum_in_pieces(memory, product, x, residual, width)
        slots = None if memory is None else memory.slots_for_sum(len(x) * width, x.itemsize)
        if slots is not None:
            return peer_sum(product(x, None), slots, residual)
        # One rank's product carries the residual, so that no launch adds it.
        return self.sum(product(x, residual if self.rank == 0 else None))

    def gather(self, x: Tensor) -> Tensor:
        if self._is_silent:
            return x.new_zeros(x.shape[0], x.shape[1] * self.world_size)
        x, memory = x.contiguous(), self._joined()
        slots = None if memory is None else memory.slots_for_gather(x.shape[0], x.shape[1], x.itemsize)
        if slots is not None:
            return peer_gather(x, slots)
        parts = x.new_empty(self.world_size, *x.shape)
        dist.all_gather_into_tensor(parts, x)
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

    def _sum_in_pieces(self, memory: PeerMemory, product: Product, x: Tensor, residual: Tensor | None, width: int) -> Tensor:
        """As `sum_products`, for two ranks and many rows, of which the inbox may hold a part."""
        total = x.new_empty(len(x), width) if residual is None else residual
        # The first rank's products carry the residual.
        carried = residual if self.rank == 0 else None
        most = INBOX_PIECES * (PIECE_BYTES // (width * x.itemsize))
        for first in range(0, len(x), most):
            rows = slice(first, first + most)
            self._swap_products(memory, product, x[rows], None if carried is None else carried[rows], total[rows])
        return total

    def _swap_products(self, memory: PeerMemory, product: Product, x: Tensor, residual: Tensor | None, total: Tensor) -> None:
        """Two ranks swap each piece of the rows while the next is multiplied; writes total [rows, width]."""
        worker, kept = torch.cuda.current_stream(), []
        most = PIECE_BYTES // total[:1].nbytes
        num_pieces = max(2, min(INBOX_PIECES, len(x) // PIECE_ROWS), -(-len(x) // most))
        size = -(-len(x) // num_pieces)
        for piece, first in enumerate(range(0, len(x), size)):
            rows = slice(first, first + size)
            summand = product(x[rows], None if residual is None else residual[rows])
            # Until the streams join again: no other product may take its memory.
            kept.append(summand)
            self._swapping.wait_stream(worker)
            with torch.cuda.stream(self._swapping):
                theirs = memory.swap(summand, piece)
            self._adding.wait_stream(self._swapping)
            with torch.cuda.stream(self._adding):
                torch.add(summand, theirs, out=total[rows])
        worker.wait_stream(self._adding)
        memory.end_exchange()

    def _join(self, store: Store, device: torch.device, maps_memory: bool) -> None:
        try:
            torch.cuda.set_device(device)
            dist.init_process_group(
                "nccl",
                store=part_of(store, "device"),
                rank=self.rank,
                world_size=self.world_size,
                timeout=timedelta(seconds=COLLECTIVE_TIMEOUT_S),
                device_id=device,
            )
            if maps_memory:
                self._memory = self._map_memory(device)
        except Exception as error:
            self._failure = error

    def _map_memory(self, device: torch.device) -> PeerMemory | None:
        try:
            return PeerMemory(self.rank, self.world_size, device)
        except RuntimeError as error:
            logger.warning("GPUs can't map each other's memory, so that they exchange over NCCL alone: %s", error)
            return None

    def _joined(self) -> PeerMemory | None:
        if self._joining is not None:
            self._joining.join()
            self._joining = None
        if self._failure is not None:
            raise self._failure
        return self._memory

    def _is_alike(self, number: int) -> bool:
        """Whether all ranks call this with the same number."""
        return self.smallest(number) == number == -self.smallest(-number)


def _machine() -> int:
    """A number that processes have in common if they run on one machine."""
    return int(Path("/proc/sys/kernel/random/boot_id").read_text().replace("-", "")[:15], 16)

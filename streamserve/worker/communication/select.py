"""How ranks join: by the device that they compute on."""

from __future__ import annotations

from streamserve.worker.communication.base import Join, RankGroup, alone
from streamserve.worker.communication.gloo import GlooGroup
from streamserve.worker.communication.stores import open_store
from streamserve.worker.device.base import Device


def join_at(store: str, rank: int, world_size: int, *, store_fd: int = -1, maps_memory: bool = True) -> Join:
    """Joins ranks that call this with the same store, a file of theirs or "host:port" of a TCP store, each with its number.

    store_fd     the socket that the TCP store listens on, where this rank keeps it; else -1
    maps_memory  GPUs may map each other's memory
    """
    if world_size == 1:
        return alone

    def join(device: Device) -> RankGroup:
        found = open_store(store, world_size, store_fd)
        if device.torch_device.type == "cuda":
            # Here and not at the top: torch built for CPUs has no NCCL.
            from streamserve.worker.communication.nccl import NcclGroup

            return NcclGroup(found, rank, world_size, device.torch_device, maps_memory=maps_memory)
        return GlooGroup(found, rank, world_size)

    return join

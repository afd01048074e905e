"""Where ranks find each other: torch.distributed's stores, whose names its stubs do not export."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch.distributed as dist

Store: TypeAlias = Any


def open_store(address: str, world_size: int, listen_fd: int = -1) -> Store:
    """address    a file that the ranks of a machine share, or "host:port" of a TCP store
    listen_fd  the socket that the TCP store listens on, where this process keeps it; else -1
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        listening: dict[str, Any] = {"master_listen_fd": listen_fd} if listen_fd >= 0 else {}
        return dist.TCPStore(  # type: ignore[attr-defined]
            host, int(port), world_size, is_master=listen_fd >= 0, wait_for_workers=False, **listening
        )
    return dist.FileStore(address, world_size)  # type: ignore[attr-defined]


def part_of(store: Store, name: str) -> Store:
    """A store within a store, for one group of several."""
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]

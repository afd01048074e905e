"""Where ranks find each other: torch.distributed's stores, whose names its stubs do not export."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch.distributed as dist

Store: TypeAlias = Any


def open_store(address: str, world_size: int) -> Store:
    """address  a file that the ranks of a machine share, or "host:port" of a TCP store"""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        return dist.TCPStore(host, int(port), world_size)  # type: ignore[attr-defined]
    return dist.FileStore(address, world_size)  # type: ignore[attr-defined]


def part_of(store: Store, name: str) -> Store:
    """A store within a store, for one group of several."""
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]

"""The interface of what starts the ranks of a group and ends them.

Used on the engine's event loop. Knows no plan: the group talks to its ranks over the connections that a launcher returns.
"""

from __future__ import annotations

import socket
from typing import Protocol


class Launcher(Protocol):
    """Starts one group of ranks, once."""

    async def launch(self) -> list[socket.socket]:
        """Start every rank at the same time; returns a connection to each, by rank.

        Raises `ConfigError` when there is no place for them, and `EngineDead` when one ends before it has connected.
        """
        ...

    def fate(self, rank: int) -> str:
        """What is known about the end of a rank that has been lost, to follow "rank 1"."""
        ...

    async def stop(self) -> None:
        """End every rank, by force if need be. Safe to call twice, and before or during `launch`."""
        ...

"""Who is there: the engines and the API workers of an application, each as it has announced itself lately.

A deployment of one replica, on its event loop. It keeps nothing: whoever is not heard of for `TTL_S` is forgotten, and after a
restart all are known again within a second. Nobody relies on it to learn that another has ended: connections tell.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Literal

import msgspec

from streamserve.engine.ipc.tcp import TcpAddress

ANNOUNCE_INTERVAL_S = 1.0
"""Seconds between two announcements, and between two looks at who is there."""

TTL_S = 15.0


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """One process of the application.

    id          of its replica
    address     where others reach it
    control     where other API workers call an API worker about requests
    is_leaving  it will end soon: an engine takes no further requests
    """

    id: str
    kind: Literal["engine", "api"]
    address: TcpAddress
    control: TcpAddress | None = None
    is_leaving: bool = False


class Directory:
    """Members by id. Its methods are coroutines, as Ray Serve calls them."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._members: dict[str, tuple[Member, float]] = {}

    async def announce(self, member: Member) -> None:
        """Keep a member for the next `TTL_S` seconds."""
        self._members[member.id] = member, self._clock()

    async def leave(self, id: str) -> None:
        """Forget a member."""
        self._members.pop(id, None)

    async def members(self) -> list[Member]:
        """All that are there."""
        now = self._clock()
        self._members = {id: entry for id, entry in self._members.items() if now - entry[1] < TTL_S}
        return [member for member, _ in self._members.values()]

"""The replicas of one API worker, kept to what the directory says.

On the API worker's event loop. That an engine has ended its connection tells, and the set continues its streams at once, or
when another engine comes; the directory tells who is new and who is leaving.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from time import monotonic

from streamserve.deploy.directory import Member
from streamserve.engine.ipc.tcp import Place
from streamserve.engine.remote import RemoteEngine
from streamserve.engine.replicas.replica_set import ReplicaSet
from streamserve.errors import StreamserveError

REPLACEMENT_S = 600.0
"""Seconds that streams wait for another engine, once none is left: a node may have to be started for it."""

RETRY_INTERVAL_S = 1.0
"""Seconds between two attempts to continue elsewhere what runs on an engine that is leaving."""

logger = logging.getLogger(__name__)


class Places:
    """Adds the engines of members to a set, retires those that are leaving, and forgets those that have ended.

    replicas  a set that was made of places at the addresses of `members`
    drain_s   seconds that streams get to finish on an engine that is leaving
    """

    def __init__(self, replicas: ReplicaSet, members: Sequence[Member], places: Sequence[Place], *, drain_s: float) -> None:
        self._replicas = replicas
        self._drain_s = drain_s
        all_of_each = zip(members, places, replicas.replicas, strict=True)
        self._slots = [_Slot(member.id, place, engine) for member, place, engine in all_of_each]

    async def update(self, members: Sequence[Member]) -> None:
        """Bring the set up to date with the members that there are now. Call it again and again, never twice at a time."""
        known = {slot.member_id: slot for slot in self._slots}
        for member in members:
            if member.kind != "engine":
                continue
            if member.id not in known and not member.is_leaving:
                await self._add(member)
            elif member.id in known and member.is_leaving:
                known[member.id].retire(self._replicas, self._drain_s)
        for slot in self._slots:
            slot.close_if_lost(self._replicas)
        self._slots = [slot for slot in self._slots if not slot.engine.has_ended]

    async def _add(self, member: Member) -> None:
        place = Place(member.address)
        try:
            number = await self._replicas.add(place)
        except StreamserveError as error:
            # It has ended meanwhile, or will be there when it is looked at again.
            logger.warning("can't use engine %s: %s", member.id, error.message)
            return
        self._slots.append(_Slot(member.id, place, self._replicas.replicas[number]))
        logger.info("engine %s is replica %d", member.id, number)


class _Slot:
    """The place of one member's engine."""

    def __init__(self, member_id: str, place: Place, engine: RemoteEngine) -> None:
        self.member_id = member_id
        self.engine = engine
        self._place = place
        self._retiring: asyncio.Task[None] | None = None
        self._lost_at: float | None = None

    def retire(self, replicas: ReplicaSet, drain_s: float) -> None:
        """Have the engine take no more requests, and its streams continue elsewhere after `drain_s`. Idempotent."""
        if self._retiring is None:
            self._retiring = asyncio.create_task(self._retire(replicas, drain_s))

    async def _retire(self, replicas: ReplicaSet, drain_s: float) -> None:
        while not self.engine.has_ended:
            if await replicas.retire(replicas.replicas.index(self.engine), drain_s):
                return
            # There is no other yet.
            drain_s = 0.0
            await asyncio.sleep(RETRY_INTERVAL_S)

    def close_if_lost(self, replicas: ReplicaSet) -> None:
        """Await no engine here once there is another, or none has come for long: a member that has ended does not return."""
        if not self.engine.is_lost:
            self._lost_at = None
            return
        self._lost_at = self._lost_at or monotonic()
        if replicas.takes_requests or monotonic() - self._lost_at > REPLACEMENT_S:
            self._place.is_closed = True

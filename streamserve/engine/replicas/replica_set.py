"""Several engines that serve the same model, as one `Engine`: each request goes to the replica that the router chooses.

Runs on one API worker's event loop; every worker has a set of its own, over shared memory. Streams of a replica that is
lost continue at others; one that does not answer gets no requests until it does. Starts and ends no process.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Coroutine, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import msgspec

from streamserve.engine.base import SequenceStream
from streamserve.engine.constraints import are_constrained
from streamserve.engine.ipc.tcp import Place
from streamserve.engine.remote import RemoteEngine
from streamserve.engine.replicas.routing_memory import RoutingMemory
from streamserve.engine.replicas.summed_stats import summed
from streamserve.engine.stream import ChannelStream, StreamLimits
from streamserve.errors import EngineDead, QueueFull, Unavailable
from streamserve.routing.policy import RoutingPolicy
from streamserve.routing.prefix_keys import PrefixKeys, prefix_keys
from streamserve.routing.router import Router
from streamserve.types import EngineInfo, EngineSnapshot, EngineStats, Quota, Quotas, SequenceSpec, Tenant
from streamserve.types.quota import together

POLL_INTERVAL_S = 1.0
"""Seconds between two looks at whether a replica answers."""

RETIRE_INTERVAL_S = 0.1
"""Seconds between two looks at whether a replica that retires has ended its sequences."""

SNAPSHOT_TIMEOUT_S = 1.0
"""Seconds that a replica gets to send its statistics: probes and scrapes don't wait for one that was stopped."""

LONG_PROMPTS = 16384
"""Tokens of a request's prompts from which their keys are made by a thread."""

PROMPTS_PER_TURN = 32
"""Prompts that are routed before other tasks have a turn."""

logger = logging.getLogger(__name__)


class ReplicaSet:
    """The engines at some addresses, numbered from 0; satisfies `Engine`, and is the `Peers` of each of them.

    addresses    of the engine sockets, or places; an engine that ends is awaited while its address exists, or until its place
                 is closed
    memory       shared with the sets of the other workers; has room for the replicas that are added later
    is_only_router  nobody but the sets that share `memory` sends sequences to these engines
    awaits_start    as of `RemoteEngine`
    on_given_up  called with a replica's number, and how many engines ended under a sequence when it is given up for that
    """

    def __init__(
        self,
        addresses: Sequence[str | Place],
        memory: RoutingMemory | None = None,
        *,
        is_only_router: bool = True,
        policy: RoutingPolicy | None = None,
        awaits_start: bool = False,
        on_given_up: Callable[[int, int], None] = lambda number, num_ends: None,
        stream_limits: StreamLimits | None = None,
    ) -> None:
        self._memory = memory or RoutingMemory(len(addresses))
        self._router = Router(self._memory.num_replicas, policy=policy, index=self._memory.index)
        self._is_only_router = is_only_router
        self._awaits_start = awaits_start
        self._on_given_up = on_given_up
        self._stream_limits = stream_limits
        self._replicas = [self._replica(number, address) for number, address in enumerate(addresses)]
        self._adding = anyio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def replicas(self) -> list[RemoteEngine]:
        """The engines that serve the model, by number."""
        return [replica.engine for replica in self._replicas]

    @property
    def takes_requests(self) -> bool:
        """Whether a replica does."""
        return any(replica.takes_requests for replica in self._replicas)

    @property
    def info(self) -> EngineInfo:
        """The first replica's that has been there; all have the same model and settings."""
        started = [engine for engine in self.replicas if engine.has_started]
        return (started or self.replicas)[0].info

    async def start(self) -> EngineInfo:
        """Connect to every replica and wait until all have loaded; raises what kept one from it.

        With `awaits_start` those that have ended for good are left out, unless all have.
        """
        try:
            await asyncio.gather(*(self._start(engine) for engine in self.replicas))
            info = self.info
        except BaseException:
            await self.stop()
            raise
        for replica in self._replicas:
            if replica.engine.has_started:
                self._spawn(self._watch(replica))
        return info

    async def open(self, specs: list[SequenceSpec]) -> list[SequenceStream]:
        """Admit sequences, all or none; see `Engine.open`. Those with one prompt go to one replica.

        Each replica holds their tenant to its part of the limits, and is one of several to be asked.
        """
        parts = await self._route(self._of_divided_tenants(specs))
        if len(parts) == 1:
            [(number, part)] = parts.items()
            return await self._open_at(number, part)
        opened: dict[str, SequenceStream] = {}

        async def open_part(number: int, part: list[SequenceSpec]) -> None:
            opened.update((stream.sequence_id, stream) for stream in await self._open_at(number, part))

        try:
            await _together([open_part(number, part) for number, part in parts.items()])
        except BaseException:
            for stream in opened.values():
                stream.close()
            raise
        return [opened[spec.sequence_id] for spec in specs]

    async def add(self, place: Place) -> int:
        """Connect to one more replica, and have it take requests; returns its number, that of one that has ended if it can.

        Raises `EngineDead` when it can't be reached, and `Unavailable` when there are as many as there is room for.
        """
        async with self._adding:
            number = next((number for number, each in enumerate(self._replicas) if each.engine.has_ended), len(self._replicas))
            if number == self._memory.num_replicas:
                raise Unavailable(f"there are {number} replicas already, as many as this router has room for")
            replica = self._replica(number, place)
            await replica.engine.start()
            self._router.forget(number)
            self._replicas[number : number + 1] = [replica]
        self._spawn(self._watch(replica))
        await self._continue_all()
        return number

    async def retire(self, number: int, timeout_s: float) -> bool:
        """Have a replica take no more requests, continue elsewhere what it still runs after `timeout_s`, and disconnect.

        False when there is no other that could continue it: the replica stays as it is, and takes no requests until it has
        ended and another has come in its place.
        """
        replica = self._replicas[number]
        engine, replica.is_retiring = replica.engine, True
        for _ in range(round(timeout_s / RETIRE_INTERVAL_S)):
            if engine.is_lost or not engine.num_streams:
                break
            await asyncio.sleep(RETIRE_INTERVAL_S)
        if not engine.is_lost:
            engine.leave()
            await self._continue_streams(engine)
        if engine.num_streams or engine.is_lost:
            return False
        await engine.stop()
        return True

    def refusal(self, tenant: Tenant) -> QueueFull | None:
        """The error with which all replicas refuse every request of a tenant now, as far as they have said so; the soonest."""
        part = self._divided(tenant)
        refusals = [replica.engine.refusal(part) for replica in self._replicas if replica.takes_requests]
        known = [refusal for refusal in refusals if refusal is not None]
        return min(known, key=lambda refusal: refusal.retry_after_s) if known and len(known) == len(refusals) else None

    def quotas(self, tenant: Tenant) -> Quotas | None:
        """What a tenant may still use of all replicas together; one that has said nothing is as full as can be."""
        part = self._divided(tenant)
        full = Quotas(Quota.full(part.requests_per_minute), Quota.full(part.tokens_per_minute))
        told = [engine.quotas(part) for engine in self.replicas if not engine.has_ended]
        return together([quotas or full for quotas in told]) if any(told) else None

    def abort(self, sequence_id: str) -> bool:
        """End a sequence with reason "abort", keeping what its reader has not read yet. False when unknown."""
        return any(engine.abort(sequence_id) for engine in self.replicas)

    async def stats(self) -> EngineStats:
        """The sums of those that answer; raises `Unavailable` when none does."""
        parts = [snapshot.stats for snapshot in await self.snapshots() if snapshot.stats is not None]
        if not parts:
            raise Unavailable("no replica answers: try again in a few seconds")
        return summed(parts)

    async def snapshots(self) -> list[EngineSnapshot]:
        """Facts and statistics of each replica, by number."""
        return await asyncio.gather(*(replica.snapshot(self.info) for replica in self._replicas))

    async def stop(self) -> None:
        """End every stream with `EngineDead`, and disconnect. Idempotent."""
        with anyio.CancelScope(shield=True):
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(list(self._tasks))
            await asyncio.gather(*(engine.stop() for engine in self.replicas))

    async def wait_ended(self) -> None:
        """Return once every replica has ended and none will be restarted."""
        for engine in self.replicas:
            await engine.wait_ended()

    async def _start(self, engine: RemoteEngine) -> None:
        try:
            await engine.start()
        except EngineDead:
            if not self._awaits_start:
                raise

    def _replica(self, number: int, address: str | Place) -> _Replica:
        engine = RemoteEngine(
            address,
            reconnects=True,
            awaits_start=self._awaits_start,
            on_given_up=partial(self._on_given_up, number),
            peers=self,
            stream_limits=self._stream_limits,
        )
        return _Replica(engine)

    # As the peers of a replica.

    async def lost(self, engine: RemoteEngine) -> None:
        """Continue its streams elsewhere, as far as there is a place."""
        self._router.forget(self.replicas.index(engine))
        await self._continue_streams(engine)

    def returned(self, engine: RemoteEngine) -> None:
        """Continue here what waits for replicas that are still lost."""
        self._replicas[self.replicas.index(engine)].is_retiring = False
        self._spawn(self._continue_all())

    def given_up(self, fingerprints: list[bytes]) -> None:
        """Have every replica refuse these requests."""
        for engine in self.replicas:
            engine.refuse(fingerprints)

    async def _continue_all(self) -> None:
        for engine in self.replicas:
            if engine.is_lost:
                await self._continue_streams(engine)

    async def _continue_streams(self, engine: RemoteEngine) -> None:
        num_moved = 0
        for stream in engine.continuable():
            number = self._place_of(stream, engine)
            if number is None:
                break
            if engine.release(stream):
                self._replicas[number].engine.adopt(stream)
                num_moved += 1
            if num_moved % PROMPTS_PER_TURN == 0:
                await anyio.lowlevel.checkpoint()
        if num_moved:
            logger.warning("continuing %d sequences of replica %d elsewhere", num_moved, self.replicas.index(engine))

    def _place_of(self, stream: ChannelStream, engine: RemoteEngine) -> int | None:
        """The replica to continue a stream of `engine`; one that is lost, too, only when `engine` itself will not return."""
        number = self._router.route(_keys(stream.resume_state.continuation(), self.info.block_size), self._loads())
        if number is None and not engine.will_return:
            return next((number for number, each in enumerate(self.replicas) if each is not engine and each.is_lost), None)
        return number

    async def _route(self, specs: Sequence[SequenceSpec]) -> dict[int, list[SequenceSpec]]:
        """The sequences by replica. Raises `Unavailable` when none takes requests."""
        prompts: dict[int, list[SequenceSpec]] = {}
        for spec in specs:
            prompts.setdefault(id(spec.prompt_token_ids), []).append(spec)
        keys = await self._keys_of([part[0] for part in prompts.values()])
        parts: dict[int, list[SequenceSpec]] = {}
        loads = self._loads()
        for place, part in enumerate(prompts.values()):
            if place % PROMPTS_PER_TURN == PROMPTS_PER_TURN - 1:
                await anyio.lowlevel.checkpoint()
            number = self._router.route(keys[place], loads)
            if number is None:
                raise Unavailable("no replica of the model takes requests now: try again in a few seconds")
            loads[number] = (loads[number] or 0) + len(part)
            parts.setdefault(number, []).extend(part)
        return parts

    async def _keys_of(self, specs: Sequence[SequenceSpec]) -> list[PrefixKeys]:
        size = self.info.block_size
        if sum(len(spec.prompt_token_ids) for spec in specs) < LONG_PROMPTS:
            return [_keys(spec, size) for spec in specs]
        return await anyio.to_thread.run_sync(lambda: [_keys(spec, size) for spec in specs])

    def _of_divided_tenants(self, specs: list[SequenceSpec]) -> list[SequenceSpec]:
        tenant = specs[0].tenant
        divided = self._divided(tenant)
        return specs if divided == tenant else [msgspec.structs.replace(spec, tenant=divided) for spec in specs]

    def _divided(self, tenant: Tenant) -> Tenant:
        return tenant.divided(sum(not engine.has_ended for engine in self.replicas) or 1)

    async def _open_at(self, number: int, specs: list[SequenceSpec]) -> list[SequenceStream]:
        """Admit sequences at a replica, or at another where that one is full, lost, or does not answer."""
        refused: set[int] = set()
        while True:
            try:
                return await self._replicas[number].open(specs)
            except (QueueFull, Unavailable) as refusal:
                # A grammar that ends the engine while it is compiled must not be tried on the next.
                if isinstance(refusal, Unavailable) and are_constrained(specs):
                    raise
                refused.add(number)
                other = self._router.route(_keys(specs[0], self.info.block_size), self._loads(refused))
                if other is None:
                    raise
                number = other

    def _loads(self, refused: Collection[int] = ()) -> list[int | None]:
        """As the router takes them; replicas where suspects are being resumed take part only while there are no others."""
        self._memory.report([engine.num_streams for engine in self.replicas])
        loads = [
            load + replica.num_of_others if replica.takes_requests and number not in refused else None
            for number, (replica, load) in enumerate(zip(self._replicas, self._memory.loads(), strict=False))
        ]
        free = [load if not engine.has_suspects else None for load, engine in zip(loads, self.replicas, strict=True)]
        return free if any(load is not None for load in free) else loads

    async def _watch(self, replica: _Replica) -> None:
        """Find out again and again whether a replica answers, until it has ended for good."""
        while not replica.engine.has_ended:
            await asyncio.sleep(POLL_INTERVAL_S)
            self._memory.report([engine.num_streams for engine in self.replicas])
            was_silent = replica.is_silent
            stats = await replica.poll()
            if stats is not None and not self._is_only_router:
                num_sequences = stats.num_requests_running + stats.num_requests_waiting + stats.num_requests_paused
                num_known = self._memory.loads()[self._replicas.index(replica)]
                replica.num_of_others = max(0, num_sequences - num_known)
            if was_silent and not replica.is_silent:
                await self._continue_all()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Replica:
    """One engine of a set, and whether it answers.

    num_of_others  sequences there of routers that share no memory with this one, as of the last look
    """

    def __init__(self, engine: RemoteEngine) -> None:
        self.engine = engine
        self.is_silent = False
        self.is_retiring = False
        self.num_of_others = 0
        self._admissions: set[anyio.CancelScope] = set()

    @property
    def takes_requests(self) -> bool:
        return not (self.engine.is_lost or self.engine.has_ended or self.is_silent or self.is_retiring)

    async def open(self, specs: list[SequenceSpec]) -> list[SequenceStream]:
        """Admit sequences; raises `Unavailable`, too, once the engine does not answer."""
        with anyio.CancelScope() as scope:
            self._admissions.add(scope)
            try:
                return await self.engine.open(specs)
            finally:
                self._admissions.discard(scope)
        raise Unavailable("the replica does not answer: try again in a few seconds")

    async def poll(self) -> EngineStats | None:
        """Find out whether the engine answers; while it does not, nobody waits for it to admit."""
        stats: EngineStats | None = None
        try:
            stats = await self.engine.stats()
        except Unavailable:
            self.is_silent = not (self.engine.is_lost or self.engine.has_ended)
        else:
            self.is_silent = False
        if self.is_silent:
            for scope in self._admissions:
                scope.cancel()
        return stats

    async def snapshot(self, info: EngineInfo) -> EngineSnapshot:
        """What is known of it; `info` is what all replicas have in common."""
        if self.engine.has_started:
            with anyio.move_on_after(SNAPSHOT_TIMEOUT_S):
                [snapshot] = await self.engine.snapshots()
                return snapshot
        return EngineSnapshot(info, None)


def _keys(spec: SequenceSpec, block_size: int) -> PrefixKeys:
    return prefix_keys([*spec.prompt_token_ids, *spec.generated_token_ids], block_size=block_size, salt=spec.cache_salt)


async def _together(calls: Sequence[Coroutine[Any, Any, None]]) -> None:
    """Await calls at the same time; raise the first error after the other calls have ended, cancelled."""
    tasks = [asyncio.create_task(call) for call in calls]
    try:
        await asyncio.gather(*tasks)
    except BaseException:
        for task in tasks:
            task.cancel()
        with anyio.CancelScope(shield=True):
            await asyncio.wait(tasks)
        raise

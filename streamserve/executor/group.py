"""The ranks of one engine in processes of their own, on this machine or others.

Runs on the engine's event loop. Every rank gets every plan and keeps the same rows, so all of them sample the same tokens, and
the first alone sends them back. The group is lost with any of its ranks: they wait for each other in every layer. A rank
that exits or fails is noticed at once, steps or none, one that hangs when a step takes longer than `STEP_TIMEOUT_S`.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from typing import cast

from streamserve.errors import ConfigError, EngineDead, RankOutOfMemory
from streamserve.executor.base import OnLost, StepHandle, ignore_loss
from streamserve.executor.handles import FutureStep, quiet_future
from streamserve.executor.launchers.base import Launcher
from streamserve.executor.messages import RankFailed, RankLoaded, RankMessage, StepDone, rank_message_decoder
from streamserve.process.framing import ProtocolViolation, encode
from streamserve.scheduling.plan import Plan, StepResult
from streamserve.types import EngineInfo

STEP_TIMEOUT_S = 300.0
"""Seconds after which a step counts as hung; a long prompt on few cores takes minutes."""


CAUSE_S = 0.5
"""Seconds that a failed rank's own words wait for news of another that is gone: it may have failed for that alone."""


class GroupExecutor:
    """Runs a group of ranks; satisfies `executor.base.Executor`. Use it on one event loop."""

    def __init__(self, launcher: Launcher, *, step_timeout_s: float = STEP_TIMEOUT_S) -> None:
        self._launcher = launcher
        self._step_timeout_s = step_timeout_s
        self._links: list[_RankLink] = []
        self._outstanding: deque[asyncio.Future[StepResult]] = deque()
        self._watchdog: asyncio.TimerHandle | None = None
        self._failure: EngineDead | ConfigError | None = None
        self._on_lost: OnLost = ignore_loss
        self._failed_ranks: set[int] = set()
        self._has_started = False

    async def start(self, on_lost: OnLost = ignore_loss) -> EngineInfo:
        if self._has_started:
            raise RuntimeError("an executor starts once")
        self._has_started = True
        try:
            for rank, connection in enumerate(await self._launcher.launch()):
                self._links.append(await _RankLink.open(self, rank, connection))
            infos = await asyncio.gather(*(link.loaded for link in self._links))
            if self._failure is not None:
                raise self._failure
        except BaseException:
            await self.stop()
            raise
        self._on_lost = on_lost
        return infos[0]

    def submit(self, plan: Plan) -> StepHandle:
        if not self._has_started:
            raise RuntimeError("start the executor before submitting steps")
        future: asyncio.Future[StepResult] = quiet_future(asyncio.get_running_loop())
        if self._failure is not None:
            future.set_exception(self._failure)
            return FutureStep(future)
        frame = encode(plan)
        for link in self._links:
            link.send(frame)
        self._outstanding.append(future)
        if self._watchdog is None:
            self._watch()
        return FutureStep(future)

    async def stop(self) -> None:
        """End the ranks at once; steps that they still run fail."""
        self._on_lost = ignore_loss
        self.fail(EngineDead("the engine was stopped"))
        await self._launcher.stop()

    def step_done(self, result: StepResult) -> None:
        """The oldest step outstanding has this result."""
        future = self._outstanding.popleft()
        if not future.done():
            future.set_result(result)
        self._stop_watching()
        if self._outstanding:
            self._watch()

    def rank_failed(self, rank: int, text: str) -> None:
        """A rank has failed, and leaves."""
        self._failed_ranks.add(rank)
        reason = EngineDead(f"rank {rank} failed: {text}")
        asyncio.get_running_loop().call_later(CAUSE_S, self.fail, reason)

    def rank_out_of_memory(self, rank: int, text: str, num_tokens: int) -> None:
        """A rank has run out of memory in the middle of a step. The others wait for it in vain: disconnecting ends them."""
        self.fail(RankOutOfMemory(f"rank {rank} ran out of memory: {text}", num_tokens=num_tokens))

    def rank_lost(self, rank: int) -> None:
        """The connection to a rank has been closed."""
        if self._failure is None and rank not in self._failed_ranks:
            self.fail(EngineDead(f"rank {rank} {self._launcher.fate(rank)}"))

    def fail(self, reason: EngineDead | ConfigError) -> None:
        """Fail every step, outstanding or later, and disconnect from the ranks; only the first reason counts."""
        if self._failure is not None:
            return
        self._failure = reason
        self._stop_watching()
        while self._outstanding:
            future = self._outstanding.popleft()
            if not future.done():
                future.set_exception(reason)
        for link in self._links:
            link.close(reason)
        if isinstance(reason, EngineDead):
            self._on_lost(reason)

    def _watch(self) -> None:
        loop = asyncio.get_running_loop()
        reason = EngineDead(f"a step has not ended for {self._step_timeout_s:g} s: a rank hangs")
        self._watchdog = loop.call_later(self._step_timeout_s, self.fail, reason)

    def _stop_watching(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None


class _RankLink(asyncio.Protocol):
    """The engine's end of the connection to one rank.

    loaded  resolves when the rank has loaded
    """

    def __init__(self, group: GroupExecutor, rank: int) -> None:
        self._group = group
        self._rank = rank
        self._decoder = rank_message_decoder()
        self._transport: asyncio.Transport | None = None
        self.loaded: asyncio.Future[EngineInfo] = quiet_future(asyncio.get_running_loop())

    @classmethod
    async def open(cls, group: GroupExecutor, rank: int, connection: socket.socket) -> _RankLink:
        link = cls(group, rank)
        loop = asyncio.get_running_loop()
        if connection.family == socket.AF_UNIX:
            await loop.create_unix_connection(lambda: link, sock=connection)
        else:
            await loop.create_connection(lambda: link, sock=connection)
        return link

    def send(self, frame: bytes) -> None:
        if self._transport is not None:
            self._transport.write(frame)

    def close(self, reason: EngineDead | ConfigError) -> None:
        if not self.loaded.done():
            self.loaded.set_exception(reason)
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not to be checked with isinstance: uvloop's transports are no asyncio.Transport.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        try:
            for message in self._decoder.feed(data):
                self._take(message)
        except ProtocolViolation as violation:
            self._group.fail(EngineDead(f"rank {self._rank} broke the protocol: {violation}"))

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._group.rank_lost(self._rank)

    def _take(self, message: RankMessage) -> None:
        match message:
            case StepDone(result):
                self._group.step_done(result)
            case RankLoaded(info):
                if not self.loaded.done():
                    self.loaded.set_result(info)
            case RankFailed(text, is_config_error, num_tokens):
                if is_config_error:
                    self._group.fail(ConfigError(text))
                elif num_tokens is not None:
                    self._group.rank_out_of_memory(self._rank, text, num_tokens)
                else:
                    self._group.rank_failed(self._rank, text)

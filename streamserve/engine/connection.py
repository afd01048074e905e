"""One API worker's connection to an engine process: questions and their answers, commands, and deltas as they come.

Runs on the API worker's event loop. Knows nothing of streams or processes: deltas and the end are told to whoever made it.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable

from streamserve.engine import frames
from streamserve.engine.error_info import restore
from streamserve.engine.link import Link, LinkLimits
from streamserve.errors import EngineDead, StreamserveError, Unavailable
from streamserve.types import EngineInfo, EngineStats, SequenceSpec, TokenDelta

Answer = frames.Opened | frames.Stats


class EngineConnection:
    """Once ended, every call raises the reason, until it has been connected again. The `SequenceControl` of remote streams.

    on_deltas  called with what a step brought
    on_end     called at each end, with the reason
    """

    def __init__(
        self,
        limits: LinkLimits,
        *,
        on_deltas: Callable[[list[tuple[str, TokenDelta]]], None],
        on_end: Callable[[StreamserveError], None],
    ) -> None:
        self._limits = limits
        self._on_deltas = on_deltas
        self._on_end = on_end
        self._link: Link[frames.Reply] | None = None
        self._ready: asyncio.Future[EngineInfo] | None = None
        self._answers: dict[int, asyncio.Future[Answer]] = {}
        self._numbers = itertools.count()
        self._reason: StreamserveError | None = None

    async def connect(self, address: str) -> EngineInfo:
        """Connect and wait until the model is loaded; raises what kept it from loading, or `EngineDead`."""
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[EngineInfo] = loop.create_future()
        if self._link is not None:
            self._link.cut_off()
        self._ready, self._reason = ready, None
        link: Link[frames.Reply] = Link(
            frames.reply_decoder(), self._limits, on_message=self._take, on_lost=lambda: self._lose(link)
        )
        self._link = link
        try:
            await loop.create_unix_connection(lambda: link, address)
        except OSError as error:
            self._link = self._ready = None
            raise EngineDead(f"the engine process can't be reached: {error.strerror}") from error
        return await ready

    async def open(self, specs: list[SequenceSpec]) -> None:
        """Have sequences admitted, all or none; raises the refusal."""
        await self._ask(lambda number: frames.OpenSequences(number, specs))

    async def stats(self) -> EngineStats:
        """The engine's own snapshot."""
        answer = await self._ask(frames.ReadStats)
        assert isinstance(answer, frames.Stats)
        return answer.stats

    def pause(self, sequence_id: str) -> None:
        self._tell(frames.PauseSequence(sequence_id))

    def resume(self, sequence_id: str) -> None:
        self._tell(frames.ResumeSequence(sequence_id))

    def abort(self, sequence_id: str) -> None:
        self._tell(frames.AbortSequence(sequence_id, time.monotonic()))

    def end(self, reason: StreamserveError) -> None:
        """Fail what waits for an answer, and whatever is asked later; the first reason stays."""
        if self._reason is not None:
            return
        self._reason = reason
        for future in (self._ready, *self._answers.values()):
            if future is not None and not future.done():
                future.set_exception(reason)
        self._on_end(reason)

    async def close(self, reason: StreamserveError) -> None:
        """End and disconnect. Idempotent."""
        self.end(reason)
        if self._link is not None and self._link.is_connected:
            self._link.cut_off()
            await self._link.wait_closed()

    def _tell(self, command: frames.Command) -> None:
        if self._link is not None:
            self._link.send(command)

    async def _ask(self, question: Callable[[int], frames.Command]) -> Answer:
        if self._reason is not None:
            raise self._reason
        if self._link is None or not self._link.is_connected:
            raise Unavailable("the engine is starting: try again in a few seconds")
        number = next(self._numbers)
        answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._answers[number] = answer
        self._link.send(question(number))
        try:
            return await answer
        finally:
            del self._answers[number]

    def _take(self, reply: frames.Reply) -> None:
        match reply:
            case frames.Deltas(deltas):
                self._on_deltas(deltas)
            case frames.Opened(number) | frames.Stats(number):
                self._settle(number, reply)
            case frames.Refused(number, error, param, retry_after_s):
                self._settle(number, restore(error, param=param, retry_after_s=retry_after_s))
            case frames.Ready(info):
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(info)
            case frames.Failed(error):
                self.end(restore(error))

    def _settle(self, number: int, answer: Answer | StreamserveError) -> None:
        future = self._answers.get(number)
        if future is None or future.done():
            return
        if isinstance(answer, StreamserveError):
            future.set_exception(answer)
        else:
            future.set_result(answer)

    def _lose(self, link: Link[frames.Reply]) -> None:
        # The link of an engine before may take its time to be lost.
        if link is self._link:
            self.end(EngineDead("the engine process has ended"))

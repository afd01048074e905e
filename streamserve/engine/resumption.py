"""Continues sequences in an engine that did not begin them: at once, but for suspects, of which one may end the engine.

Runs on the API worker's event loop, in tasks of its own. Suspects are continued once all others have a token, one by one and
then more at a time, to find the one that ends engines, which has those of one API worker at a time. Does not know where the
sequences come from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import anyio

from streamserve.engine.ipc.connection import EngineConnection
from streamserve.engine.stream import ChannelStream
from streamserve.engine.stream_table import StreamTable
from streamserve.errors import EngineDead, QueueFull, StreamserveError

SUSPECT_TIMEOUT_S = 10.0
"""Seconds that a resumed suspect gets to generate a token before the next one is resumed."""

POLL_INTERVAL_S = 0.05
"""Seconds between two looks at whether it has."""


class Resumption:
    """Resumes streams of a table over a connection."""

    def __init__(self, connection: EngineConnection, streams: StreamTable) -> None:
        self._connection = connection
        self._streams = streams
        self._suspects: list[ChannelStream] = []
        self._no_suspects = anyio.Event()
        self._no_suspects.set()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def has_suspects(self) -> bool:
        """Whether suspects are being resumed, or wait for an engine."""
        return not self._no_suspects.is_set()

    async def wait_no_suspects(self) -> None:
        """Return once no suspect is left: a new sequence that ends the engine would have its end charged to one."""
        await self._no_suspects.wait()

    def resume(self, streams: Sequence[ChannelStream]) -> None:
        """Have the engine continue streams that are in the table."""
        others = [stream for stream in streams if not stream.resume_state.is_suspect]
        suspects = [stream for stream in streams if stream.resume_state.is_suspect]
        for stream in others:
            self._spawn(self._resume(stream))
        is_running, self._suspects = bool(self._suspects), [*self._suspects, *suspects]
        if not self._suspects:
            self._no_suspects.set()
            return
        # The event that callers wait on already, if there is one.
        if self._no_suspects.is_set():
            self._no_suspects = anyio.Event()
        if suspects and not is_running:
            self._spawn(self._resume_suspects(others))

    def interrupt(self) -> None:
        """The engine is lost: resume nothing more in it. Those who wait for suspects go on waiting."""
        self._suspects = []
        for task in self._tasks:
            task.cancel()

    def end(self) -> None:
        """Nothing will be resumed any more: those who wait go on, and find out why."""
        self._no_suspects.set()

    async def stop(self) -> None:
        """Interrupt, and return once nothing runs."""
        self.interrupt()
        if self._tasks:
            await asyncio.wait(list(self._tasks))

    async def _resume_suspects(self, others: list[ChannelStream]) -> None:
        """Of many suspects, most were waiting in the queue when the engine ended: what has ended most engines comes first."""
        await self._progress(others)
        num_resumed = 0
        while self._suspects:
            self._suspects.sort(key=lambda stream: -stream.resume_state.num_losses)
            group = self._suspects[: max(1, num_resumed // 2)]
            for stream in group:
                await self._resume(stream, is_alone=len(group) == 1)
            await self._progress(group)
            num_resumed += len(group)
            # Others may have joined them.
            self._suspects = [stream for stream in self._suspects if stream not in group]
        self._no_suspects.set()

    async def _progress(self, streams: list[ChannelStream]) -> None:
        """Return once each of them has a token of this engine, has ended or is paused, or after `SUSPECT_TIMEOUT_S`."""
        for _ in range(round(SUSPECT_TIMEOUT_S / POLL_INTERVAL_S)):
            if all(self._has_progressed(stream) for stream in streams):
                return
            await asyncio.sleep(POLL_INTERVAL_S)

    def _has_progressed(self, stream: ChannelStream) -> bool:
        return stream.sequence_id not in self._streams or stream.resume_state.has_progressed or stream.is_paused

    async def _resume(self, stream: ChannelStream, *, is_alone: bool = False) -> None:
        """Continue one sequence, unless its reader has left; `is_alone` as in `ResumeState.hand_over`."""
        while True:
            await self._connection.drained()
            if stream.sequence_id not in self._streams:
                return
            state = stream.resume_state
            try:
                await self._connection.open([state.hand_over(is_alone=is_alone)], are_suspects=state.is_suspect)
            except QueueFull as full:
                await asyncio.sleep(min(full.retry_after_s, 1.0))
            except EngineDead:
                # Lost again: its streams are resumed in the next one.
                return
            except StreamserveError as error:
                self._streams.fail(stream.sequence_id, error)
            else:
                self._streams.engine_resumed(stream.sequence_id)
                return

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

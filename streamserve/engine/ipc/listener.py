"""The engine process's end of the engine socket: API workers connect, and each gets the tokens of its own sequences.

Runs on the engine's loop. Commands become plain calls on the core, replied to as soon as they are read; one step's deltas of a
worker become one frame. A worker that disconnects has all its sequences aborted.
"""

from __future__ import annotations

import asyncio
import logging
import socket

import anyio

from streamserve.engine.constraints import are_constrained
from streamserve.engine.core import EngineCore
from streamserve.engine.error_info import describe
from streamserve.engine.ipc import frames
from streamserve.engine.ipc.link import Link, LinkLimits
from streamserve.engine.ipc.packing import PackedSequences
from streamserve.errors import StreamserveError
from streamserve.scheduling.constraint import Constraint
from streamserve.types import EngineInfo, SequenceSpec, TokenDelta

logger = logging.getLogger(__name__)


class Listener:
    """Accepts API workers, before the model is loaded too, and reports to each whether the engine is ready or has failed.

    limits  when a worker that does not read its socket is disconnected
    """

    def __init__(self, core: EngineCore, limits: LinkLimits | None = None) -> None:
        self._core = core
        self._limits = limits or LinkLimits()
        self._workers: set[WorkerConnection] = set()
        self._status: frames.Ready | frames.Failed | None = None
        self._server: asyncio.Server | None = None

    async def listen(self, listening: socket.socket) -> None:
        """Begin to accept on a listening AF_UNIX socket, which is closed with the listener."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_unix_server(self._new_link, sock=listening)

    def announce_ready(self, info: EngineInfo) -> None:
        """Report to every worker, present and future, that the model is loaded."""
        self._announce(frames.Ready(info))

    def announce_failure(self, error: Exception) -> None:
        """Report to every worker, present and future, why there will be no more tokens."""
        self._announce(frames.Failed(describe(error)))

    async def close(self) -> None:
        """Send what is queued, at most for a second, and close."""
        if self._server is not None:
            self._server.close()
        with anyio.move_on_after(1):
            while self._workers:
                worker = next(iter(self._workers))
                worker.link.close()
                await worker.link.wait_closed()

    def add(self, worker: WorkerConnection) -> None:
        """Send an engine that is ready, or has failed, to a worker that has just connected."""
        self._workers.add(worker)
        if self._status is not None:
            worker.link.send(self._status)

    def discard(self, worker: WorkerConnection) -> None:
        """Forget a worker that has disconnected."""
        self._workers.discard(worker)

    def _new_link(self) -> Link[frames.Command]:
        return WorkerConnection(self._core, self, self._limits).link

    def _announce(self, status: frames.Ready | frames.Failed) -> None:
        self._status = status
        for worker in self._workers:
            worker.link.send(status)


class WorkerConnection:
    """The connection of one API worker; a `DeltaSink` for the core."""

    def __init__(self, core: EngineCore, listener: Listener, limits: LinkLimits) -> None:
        self._core = core
        self._listener = listener
        self._compiling: dict[str, asyncio.Task[None]] = {}
        self.link: Link[frames.Command] = Link(
            frames.command_decoder(),
            limits,
            on_connected=self._connected,
            on_message=self._execute,
            on_lost=self._disconnected,
        )

    def deliver(self, deltas: list[tuple[str, TokenDelta]]) -> None:
        """Send one step's deltas of this worker's sequences, as one frame."""
        self.link.send(frames.Deltas(deltas))

    def end_all(self, error: StreamserveError) -> None:
        """Send the error that ends all of this worker's sequences."""
        self.link.send(frames.Failed(describe(error)))

    def _connected(self) -> None:
        self._listener.add(self)

    def _disconnected(self) -> None:
        self._listener.discard(self)
        for task in set(self._compiling.values()):
            task.cancel()
        self._core.abort_all(self)

    def _execute(self, command: frames.Command) -> None:
        match command:
            case frames.OpenSequences(call, sequences):
                self._open(call, sequences)
            case frames.AbortSequence(sequence_id, left_at):
                self._abort(sequence_id, left_at)
            case frames.PauseSequence(sequence_id):
                self._core.pause(sequence_id)
            case frames.ResumeSequence(sequence_id):
                self._core.resume(sequence_id)
            case frames.EndReasoning(sequence_id):
                self._core.end_reasoning(sequence_id)
            case frames.ReadStats(call):
                self._send_stats(call)
            case frames.RefuseRequests(fingerprints):
                self._core.refuse(fingerprints)

    def _open(self, call: int, sequences: PackedSequences) -> None:
        try:
            specs = sequences.unpack()
        except IndexError as error:
            self._refuse(call, error)
            return
        if not are_constrained(specs):
            # At once and not in a task: an abort in the same burst of frames must find the sequence.
            self._admit(call, specs, [None] * len(specs))
            return
        task = asyncio.create_task(self._compile_and_admit(call, specs))
        for spec in specs:
            self._compiling[spec.sequence_id] = task

    async def _compile_and_admit(self, call: int, specs: list[SequenceSpec]) -> None:
        try:
            constraints = await self._core.compile(specs)
        except Exception as error:
            self._refuse(call, error)
        else:
            self._admit(call, specs, constraints)
        finally:
            for spec in specs:
                self._compiling.pop(spec.sequence_id, None)

    def _admit(self, call: int, specs: list[SequenceSpec], constraints: list[Constraint | None]) -> None:
        try:
            self._core.admit(specs, constraints, self)
        except Exception as error:
            self._refuse(call, error)
        else:
            self.link.send(frames.Opened(call))

    def _abort(self, sequence_id: str, left_at: float | None) -> None:
        compiling = self._compiling.get(sequence_id)
        if compiling is not None:
            compiling.cancel()
        else:
            self._core.abort(sequence_id, left_at=left_at)

    def _send_stats(self, call: int) -> None:
        try:
            self.link.send(frames.Stats(call, self._core.stats()))
        except StreamserveError as error:
            self._refuse(call, error)

    def _refuse(self, call: int, error: Exception) -> None:
        if not isinstance(error, StreamserveError):
            logger.error("a request could not be admitted", exc_info=error)
        self.link.send(
            frames.Refused(
                call,
                describe(error),
                param=error.param if isinstance(error, StreamserveError) else None,
            )
        )

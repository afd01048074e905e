"""The engine process's end of the engine socket: API workers connect, and each gets the tokens of its own sequences.

Runs on the engine's loop. Commands become plain calls on the core, replied to as soon as they are read; one step's deltas of a
worker become one frame. A worker that disconnects has all its sequences aborted.
"""

from __future__ import annotations

import asyncio
import logging
import math
import socket
from collections.abc import Coroutine
from typing import Any

import anyio

from streamserve.engine.constraints import are_constrained
from streamserve.engine.core import EngineCore
from streamserve.engine.error_info import describe
from streamserve.engine.ipc import frames
from streamserve.engine.ipc.link import Link, LinkLimits
from streamserve.engine.ipc.packing import PackedSequences
from streamserve.engine.ipc.suspect_turns import SuspectTurns
from streamserve.errors import QueueFull, RequestAborted, StreamserveError
from streamserve.scheduling.constraint import Constraint
from streamserve.types import EngineInfo, Quotas, SequenceSpec, TokenDelta

logger = logging.getLogger(__name__)


class Listener:
    """Accepts API workers, before the model is loaded too, and reports to each whether the engine is ready or has failed.

    limits  when a worker that does not read its socket is disconnected
    """

    def __init__(self, core: EngineCore, limits: LinkLimits | None = None) -> None:
        self._core = core
        self._limits = limits or LinkLimits()
        self._turns = SuspectTurns(core.unprogressed)
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
        return WorkerConnection(self._core, self, self._turns, self._limits).link

    def _announce(self, status: frames.Ready | frames.Failed) -> None:
        self._status = status
        for worker in self._workers:
            worker.link.send(status)


class WorkerConnection:
    """The connection of one API worker; a `DeltaSink` for the core."""

    def __init__(self, core: EngineCore, listener: Listener, turns: SuspectTurns, limits: LinkLimits) -> None:
        self._core = core
        self._listener = listener
        self._turns = turns
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[str, tuple[int, asyncio.Task[None]]] = {}
        self._lacks_room = False
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
        for task in self._tasks:
            task.cancel()
        self._core.abort_all(self)

    def _execute(self, command: frames.Command) -> None:
        match command:
            case frames.OpenSequences(call, sequences, are_suspects):
                self._open(call, sequences, are_suspects=are_suspects)
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

    def _open(self, call: int, sequences: PackedSequences, *, are_suspects: bool) -> None:
        try:
            specs = sequences.unpack()
        except IndexError as error:
            self._refuse(call, error)
            return
        if are_suspects:
            self._begin(call, specs, self._try_suspects(call, specs))
        elif are_constrained(specs) or not (self._turns.may_begin(self) or _are_resumed(specs)):
            self._begin(call, specs, self._wait_and_admit(call, specs))
        else:
            # At once and not in a task: an abort in the same burst of frames must find the sequence.
            self._admit(call, specs, [None] * len(specs))

    def _begin(self, call: int, specs: list[SequenceSpec], work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        for spec in specs:
            self._waiting[spec.sequence_id] = call, task

    async def _try_suspects(self, call: int, specs: list[SequenceSpec]) -> None:
        async with self._turns.turn(self):
            await self._compile_and_admit(call, specs)
            await self._turns.settle(spec.sequence_id for spec in specs)

    async def _wait_and_admit(self, call: int, specs: list[SequenceSpec]) -> None:
        if not _are_resumed(specs):
            await self._turns.wait(self)
        await self._compile_and_admit(call, specs)

    async def _compile_and_admit(self, call: int, specs: list[SequenceSpec]) -> None:
        try:
            constraints = await self._core.compile(specs)
        except Exception as error:
            self._stop_waiting(call)
            self._refuse(call, error)
        else:
            self._stop_waiting(call)
            self._admit(call, specs, constraints)

    def _stop_waiting(self, call: int) -> None:
        """No sequence of this call waits any longer: it is admitted, refused or given up."""
        self._waiting = {name: waiting for name, waiting in self._waiting.items() if waiting[0] != call}

    def _admit(self, call: int, specs: list[SequenceSpec], constraints: list[Constraint | None]) -> None:
        try:
            self._core.admit(specs, constraints, self)
        except Exception as error:
            self._refuse(call, error, self._core.quotas(specs[0].tenant))
            if isinstance(error, QueueFull) and error.holds_s == math.inf and not self._lacks_room:
                self._lacks_room = True
                self._core.call_when_room(self._send_room)
        else:
            self.link.send(frames.Opened(call, self._core.quotas(specs[0].tenant)))

    def _send_room(self) -> None:
        self._lacks_room = False
        self.link.send(frames.Room())

    def _abort(self, sequence_id: str, left_at: float | None) -> None:
        waiting = self._waiting.get(sequence_id)
        if waiting is None:
            self._core.abort(sequence_id, left_at=left_at)
            return
        call, task = waiting
        self._stop_waiting(call)
        # Who resumes suspects waits for the answer before going on.
        self._refuse(call, RequestAborted("the request was cancelled"))
        task.cancel()

    def _send_stats(self, call: int) -> None:
        try:
            self.link.send(frames.Stats(call, self._core.stats()))
        except StreamserveError as error:
            self._refuse(call, error)

    def _refuse(self, call: int, error: Exception, quotas: Quotas | None = None) -> None:
        if not isinstance(error, StreamserveError):
            logger.error("a request could not be admitted", exc_info=error)
        self.link.send(
            frames.Refused(
                call,
                describe(error),
                param=error.param if isinstance(error, StreamserveError) else None,
                holds_s=error.holds_s if isinstance(error, QueueFull) else 0.0,
                quotas=quotas,
            )
        )


def _are_resumed(specs: list[SequenceSpec]) -> bool:
    """Whether they go on from tokens of another engine, under which they were no suspects."""
    return all(spec.generated_token_ids for spec in specs)

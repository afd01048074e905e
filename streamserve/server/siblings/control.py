"""The control connection between the first API worker and a further one: readiness, draining, and calls about requests.

One JSON message a line over a private socket pair. Each end runs on its own process's event loop; when one end closes, the
other ends at once. Nothing else that arrives ends it: a line that is too long or no message is logged and skipped.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

import anyio
import msgspec
from anyio.abc import TaskGroup

from streamserve.aio.calls import PendingCalls
from streamserve.server.http.access.owned_id import OwnedId

logger = logging.getLogger("streamserve.server")

BEAT_INTERVAL_S = 1.0
"""Seconds between two signs of life of a further worker."""

CALL_TIMEOUT_S = 3.0
"""Seconds that a worker has to answer a call: far more than a busy one takes, and no client waits for a stopped one."""


class WorkerReady(msgspec.Struct, tag="ready", frozen=True):
    """This worker takes requests."""


class Beat(msgspec.Struct, tag="beat", frozen=True):
    """This worker's event loop runs."""


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Finish what runs, then end."""


class Retire(msgspec.Struct, tag="retire", frozen=True):
    """Another process takes this worker's place: accept no connection any more, finish what there is, then end."""


class ReloadKeys(msgspec.Struct, tag="keys", frozen=True):
    """The keys file has changed: read it again."""


Method = Literal["answer", "cancel", "find"]
"""answer, cancel: end the reasoning of the running request with this id, or the request; find: look up what is kept of one."""

CallSiblings = Callable[[Method, OwnedId], Awaitable[int | None]]
"""Calls a method on some workers, with a request's id; returns the number of the worker that has the request, or None."""


class MethodCall(msgspec.Struct, tag="call", frozen=True):
    """Call a method on all workers of the receiving side; answered by a `MethodResult` with the same number."""

    number: int
    method: Method
    id: OwnedId


class MethodResult(msgspec.Struct, tag="result", frozen=True):
    """The worker that has the request of a call; None when none does."""

    number: int
    worker: int | None


ControlMessage = WorkerReady | Beat | Drain | Retire | ReloadKeys | MethodCall | MethodResult
_DECODER: msgspec.json.Decoder[ControlMessage] = msgspec.json.Decoder(ControlMessage)
_ENCODER = msgspec.json.Encoder()


class Control:
    """One end of the control connection.

    on_call         executes the other end's calls on the workers of this side
    on_ready        called when the other end takes requests
    on_drain        called when the other end wants this one to drain
    on_retire       called when the other end has replaced this one
    on_keys         called when the other end has read other keys
    call_timeout_s  seconds that the other end has to answer a call

    num_received  messages of the other end so far
    """

    def __init__(
        self,
        *,
        on_call: CallSiblings,
        on_ready: Callable[[], None] | None = None,
        on_drain: Callable[[], None] | None = None,
        on_retire: Callable[[], None] | None = None,
        on_keys: Callable[[], None] | None = None,
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._on_call = on_call
        self._call_timeout_s = call_timeout_s
        self._on_ready = on_ready
        self._on_drain = on_drain
        self._on_retire = on_retire
        self._on_keys = on_keys
        self._calls: PendingCalls[int | None] = PendingCalls()
        self._writer: asyncio.StreamWriter | None = None
        self._unsent: list[bytes] = []
        self.num_received = 0

    async def run(self, end: socket.socket) -> None:
        """Handle the other end's messages until it closes the connection."""
        reader, self._writer = await asyncio.open_connection(sock=end)
        self._writer.writelines(self._unsent)
        try:
            async with anyio.create_task_group() as tasks:
                async for message in _messages(reader):
                    self._handle(message, tasks)
                tasks.cancel_scope.cancel()
        finally:
            self._calls.close(ConnectionResetError("the other end is gone"))
            self._writer.close()

    def send(self, message: ControlMessage) -> None:
        """Send without waiting, as soon as there is a connection; drop the message once the other end is gone."""
        line = _ENCODER.encode(message) + b"\n"
        if self._writer is None:
            self._unsent.append(line)
        elif not self._calls.is_closed:
            self._writer.write(line)

    async def call(self, method: Method, id: OwnedId) -> int | None:
        """Call a method on the other side; returns the worker that has the request, None when none has or that side is gone.

        Raises `TimeoutError` when no answer comes in time.
        """
        try:
            with anyio.fail_after(self._call_timeout_s):
                return await self._calls.call(lambda number: self.send(MethodCall(number, method, id)))
        except ConnectionResetError:
            return None

    async def beat(self) -> None:
        """Send a sign of life every `BEAT_INTERVAL_S`, until cancelled."""
        while True:
            self.send(Beat())
            await anyio.sleep(BEAT_INTERVAL_S)

    async def _answer(self, number: int, method: Method, id: OwnedId) -> None:
        try:
            worker = await self._on_call(method, id)
        except TimeoutError:
            # The caller has waited for as long, and knows it by now.
            return
        except Exception:
            logger.exception("a call of another API worker failed")
            return
        self.send(MethodResult(number, worker))

    def _handle(self, message: ControlMessage, tasks: TaskGroup) -> None:
        self.num_received += 1
        match message:
            case WorkerReady():
                if self._on_ready is not None:
                    self._on_ready()
            case Drain():
                if self._on_drain is not None:
                    self._on_drain()
            case Retire():
                if self._on_retire is not None:
                    self._on_retire()
            case ReloadKeys():
                if self._on_keys is not None:
                    self._on_keys()
            case MethodCall(number, method, id):
                # In a task of its own: the result may have to come from a third process, through this very loop.
                tasks.start_soon(self._answer, number, method, id)
            case MethodResult(number, worker):
                self._calls.complete(number, worker)


async def _messages(reader: asyncio.StreamReader) -> AsyncIterator[ControlMessage]:
    """Messages until the other end is gone, in whatever way."""
    while True:
        try:
            line = await reader.readline()
            if not line:
                return
            message = _DECODER.decode(line)
        except ConnectionError:
            return
        except ValueError as error:
            # No JSON, no message, or a line over the reader's limit, behind which it goes on.
            logger.error("skipped what is no message of another API worker: %s", error)
        else:
            yield message

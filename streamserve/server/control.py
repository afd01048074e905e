"""What the first API worker and its further ones say to each other: drain, cancel, and how that went.

One JSON message a line over a private socket pair. Each end lives on its own process's event loop; when one end goes, the other
notices at once.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

import anyio
import msgspec
from anyio.abc import TaskGroup


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """This worker takes requests."""


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Finish what runs, then end."""


class Cancel(msgspec.Struct, tag="cancel", frozen=True):
    """Cancel a request if it is answered on your side; `call` comes back with the outcome."""

    call: int
    request_id: str


class Cancelled(msgspec.Struct, tag="cancelled", frozen=True):
    """The outcome of a `Cancel`."""

    call: int
    found: bool


Message = Ready | Drain | Cancel | Cancelled
_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_ENCODER = msgspec.json.Encoder()


class Control:
    """One end of the pair.

    cancel    asked to cancel a request here
    on_ready  told that the other end takes requests
    on_drain  told to drain
    """

    def __init__(
        self,
        *,
        cancel: Callable[[str], Awaitable[bool]],
        on_ready: Callable[[], None] | None = None,
        on_drain: Callable[[], None] | None = None,
    ) -> None:
        self._cancel = cancel
        self._on_ready = on_ready
        self._on_drain = on_drain
        self._calls: dict[int, asyncio.Future[bool]] = {}
        self._numbers = itertools.count()
        self._writer: asyncio.StreamWriter | None = None
        self._unsent: list[bytes] = []
        self._has_ended = False

    async def run(self, end: socket.socket) -> None:
        """Obey the other end until it closes."""
        reader, self._writer = await asyncio.open_connection(sock=end)
        self._writer.writelines(self._unsent)
        try:
            async with anyio.create_task_group() as tasks:
                async for line in _lines(reader):
                    self._obey(_DECODER.decode(line), tasks)
                tasks.cancel_scope.cancel()
        finally:
            self._has_ended = True
            for call in self._calls.values():
                call.cancel()
            self._writer.close()

    def tell(self, message: Message) -> None:
        """Send without waiting, as soon as there is a connection; nothing once the other end is gone."""
        line = _ENCODER.encode(message) + b"\n"
        if self._writer is None:
            self._unsent.append(line)
        elif not self._has_ended:
            self._writer.write(line)

    async def cancel(self, request_id: str) -> bool:
        """Ask the other end to cancel a request; False when it does not have it, or is gone."""
        if self._has_ended:
            return False
        number = next(self._numbers)
        answer: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self.tell(Cancel(number, request_id))
        try:
            await asyncio.wait([answer])
            return not answer.cancelled() and answer.result()
        finally:
            del self._calls[number]

    async def _answer_cancel(self, call: int, request_id: str) -> None:
        self.tell(Cancelled(call, await self._cancel(request_id)))

    def _obey(self, message: Message, tasks: TaskGroup) -> None:
        match message:
            case Ready():
                if self._on_ready is not None:
                    self._on_ready()
            case Drain():
                if self._on_drain is not None:
                    self._on_drain()
            case Cancel(call, request_id):
                # Beside the reading: the answer may have to come from a third process, through this very loop.
                tasks.start_soon(self._answer_cancel, call, request_id)
            case Cancelled(call, found):
                answer = self._calls.get(call)
                if answer is not None and not answer.done():
                    answer.set_result(found)


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines until the other end is gone, in whatever way."""
    try:
        while line := await reader.readline():
            yield line
    except ConnectionError:
        return

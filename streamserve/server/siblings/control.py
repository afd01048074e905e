"""What the first API worker and its further ones say to each other: drain, and which of them has a request.

One JSON message a line over a private socket pair. Each end lives on its own process's event loop; when one end goes, the other
notices at once.
"""

from __future__ import annotations

import asyncio
import itertools
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Literal

import anyio
import msgspec
from anyio.abc import TaskGroup


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """This worker takes requests."""


class Drain(msgspec.Struct, tag="drain", frozen=True):
    """Finish what runs, then end."""


Question = Literal["cancel", "find"]
"""cancel: end the request with this id, if it is being answered; find: is what came of it kept?"""

Asked = Callable[[Question, str], Awaitable[int | None]]
"""Answers a question about an id with the number of the worker that has it; None when none does."""


class Ask(msgspec.Struct, tag="ask", frozen=True):
    """A question to all workers on your side; `call` comes back with the answer."""

    call: int
    question: Question
    id: str


class Answer(msgspec.Struct, tag="answer", frozen=True):
    """Which worker has what was asked about."""

    call: int
    worker: int | None


Message = Ready | Drain | Ask | Answer
_DECODER: msgspec.json.Decoder[Message] = msgspec.json.Decoder(Message)
_ENCODER = msgspec.json.Encoder()


class Control:
    """One end of the pair.

    asked     answers for this side
    on_ready  told that the other end takes requests
    on_drain  told to drain
    """

    def __init__(
        self,
        *,
        asked: Asked,
        on_ready: Callable[[], None] | None = None,
        on_drain: Callable[[], None] | None = None,
    ) -> None:
        self._asked = asked
        self._on_ready = on_ready
        self._on_drain = on_drain
        self._calls: dict[int, asyncio.Future[int | None]] = {}
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

    async def ask(self, question: Question, id: str) -> int | None:
        """The worker on the other side that has what is asked about; None when there is none, or that side is gone."""
        if self._has_ended:
            return None
        number = next(self._numbers)
        answer: asyncio.Future[int | None] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self.tell(Ask(number, question, id))
        try:
            await asyncio.wait([answer])
            return None if answer.cancelled() else answer.result()
        finally:
            del self._calls[number]

    async def _answer(self, call: int, question: Question, id: str) -> None:
        self.tell(Answer(call, await self._asked(question, id)))

    def _obey(self, message: Message, tasks: TaskGroup) -> None:
        match message:
            case Ready():
                if self._on_ready is not None:
                    self._on_ready()
            case Drain():
                if self._on_drain is not None:
                    self._on_drain()
            case Ask(call, question, id):
                # Beside the reading: the answer may have to come from a third process, through this very loop.
                tasks.start_soon(self._answer, call, question, id)
            case Answer(call, worker):
                answer = self._calls.get(call)
                if answer is not None and not answer.done():
                    answer.set_result(worker)


async def _lines(reader: asyncio.StreamReader) -> AsyncIterator[bytes]:
    """Lines until the other end is gone, in whatever way."""
    try:
        while line := await reader.readline():
            yield line
    except ConnectionError:
        return

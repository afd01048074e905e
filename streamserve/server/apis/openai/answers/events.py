"""Events of streamed completions and chats, in the form of each transport.

Over SSE an event is its JSON and `[DONE]` ends the stream; over a WebSocket the same JSON is the `data` of a message, and
the ending a message of its own. Plain values.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from streamserve.errors import StreamserveError
from streamserve.server.delivery.events import members, socket_message
from streamserve.server.http.errors import error_object

DATA, BLANK_LINE = b"data: ", b"\n\n"
DONE = b"data: [DONE]\n\n"


class Chunk(NamedTuple):
    """One chunk of an answer.

    kind  "chat.completion" or "completion"
    json  the chunk object
    """

    kind: str
    json: bytes

    @property
    def num_bytes(self) -> int:
        """Roughly the memory it takes."""
        return len(self.json)

    def server_sent(self, number: int = 0) -> bytes:
        """The event in an SSE stream; its number is no part of it."""
        return DATA + self.json + BLANK_LINE

    def message(self, number: int, stream_id: bytes | None) -> str:
        """The event as a WebSocket message."""
        return socket_message(f"{self.kind}.chunk", number, stream_id, b'"data":' + self.json)


class Done(NamedTuple):
    """The ending of an answer in which every choice has finished.

    kind    as of `Chunk`
    id      of the answer
    status  "completed" or "cancelled"
    """

    kind: str
    id: str
    status: str

    @property
    def num_bytes(self) -> int:
        """Roughly the memory it takes."""
        return len(self.id)

    def server_sent(self, number: int = 0) -> bytes:
        """The event in an SSE stream; its number is no part of it."""
        return DONE

    def message(self, number: int, stream_id: bytes | None) -> str:
        """The event as a WebSocket message."""
        return socket_message(f"{self.kind}.done", number, stream_id, members(response_id=self.id, status=self.status))


class Failure(NamedTuple):
    """The ending of an answer that could not be finished."""

    error: StreamserveError

    @property
    def num_bytes(self) -> int:
        """Roughly the memory it takes."""
        return len(self.error.message)

    def server_sent(self, number: int = 0) -> bytes:
        """The event in an SSE stream; its number is no part of it."""
        return DATA + orjson.dumps(error_object(self.error)) + BLANK_LINE + DONE

    def message(self, number: int, stream_id: bytes | None) -> str:
        """The event as a WebSocket message."""
        return socket_message("error", number, stream_id, members(status=self.error.status, **error_object(self.error)))


Event = Chunk | Done | Failure

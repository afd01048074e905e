"""Events of the Responses API, in the form of each transport.

Both carry the same JSON object; over SSE its type also stands on an `event:` line, over a WebSocket the object may name its
stream. Plain values.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from streamserve.errors import StreamserveError
from streamserve.server.delivery.events import members, socket_message


class ResponseEvent(NamedTuple):
    """One event.

    fields  the members of its JSON object beside type and number, without braces
    """

    type: str
    fields: bytes

    @property
    def num_bytes(self) -> int:
        """Roughly the memory it takes."""
        return len(self.fields)

    def server_sent(self, number: int) -> bytes:
        """The event in an SSE stream."""
        kind = self.type.encode()
        return b'event: %b\ndata: {"type":"%b","sequence_number":%d,%b}\n\n' % (kind, kind, number, self.fields)

    def message(self, number: int, stream_id: bytes | None) -> str:
        """The event as a WebSocket message."""
        return socket_message(self.type, number, stream_id, self.fields)


def event(type: str, **fields: Any) -> ResponseEvent:
    """An event with these members."""
    return ResponseEvent(type, members(**fields))


def error_event(error: StreamserveError) -> ResponseEvent:
    """The ending of a stream whose response goes on without this reader."""
    return event("error", code=error.code, message=error.message, param=error.param)

"""A Server-Sent Events decoder: bytes in, events out, in whatever pieces the network cuts them.

Follows the WHATWG event stream grammar (HTML Living Standard, 9.2.6). Sans-IO: it opens nothing, awaits nothing, knows no JSON.
"""

from __future__ import annotations

from dataclasses import dataclass

from streamserve_client.errors import ProtocolError

_BOM = b"\xef\xbb\xbf"
MAX_EVENT_BYTES = 64 * 1024 * 1024
"""An event larger than this is not an answer to any request: it would only fill the memory."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One event.

    data   the `data` lines joined by newlines
    event  the event's type; "" when the stream names none
    id     the last event id seen so far on this stream
    """

    data: str
    event: str = ""
    id: str = ""


class SSEDecoder:
    """Decodes one stream. An event left incomplete at the end of the stream is dropped, as the grammar requires."""

    def __init__(self, *, max_event_bytes: int = MAX_EVENT_BYTES) -> None:
        self.retry_ms: int | None = None
        self._max_event_bytes = max_event_bytes
        self._partial: list[bytes] = []
        self._data: list[bytes] = []
        self._event = b""
        self._id = b""
        self._held_bytes = 0
        self._is_first_line = True
        self._ended_in_cr = False

    def feed(self, chunk: bytes) -> list[ServerSentEvent]:
        """The events that `chunk` completes, in order; linear in the bytes fed.

        Raises `ProtocolError` when an event outgrows `max_event_bytes`.
        """
        events = []
        for line in self._complete_lines(chunk):
            if line:
                self._take_field(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        return events

    def _complete_lines(self, chunk: bytes) -> list[bytes]:
        if not chunk:
            return []
        # A lone CR ends a line at once; when an LF follows in the next chunk the two were one line end, and not an empty line.
        if self._ended_in_cr and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._ended_in_cr = chunk.endswith(b"\r")
        lines = []
        for piece in chunk.splitlines(keepends=True):
            self._hold(len(piece))
            self._partial.append(piece)
            if piece.endswith((b"\n", b"\r")):
                lines.append(self._join_line())
        return lines

    def _hold(self, size: int) -> None:
        self._held_bytes += size
        if self._held_bytes > self._max_event_bytes:
            raise ProtocolError(f"the server sent an event of more than {self._max_event_bytes} bytes")

    def _join_line(self) -> bytes:
        line = b"".join(self._partial).rstrip(b"\r\n")
        self._partial.clear()
        if self._is_first_line:
            self._is_first_line = False
            line = line.removeprefix(_BOM)
        if not line:
            self._held_bytes = 0
        return line

    def _take_field(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._event = value
        elif name == b"id" and b"\0" not in value:
            self._id = value
        elif name == b"retry" and value.isdigit():
            self.retry_ms = int(value)

    def _dispatch(self) -> ServerSentEvent | None:
        data, self._data = self._data, []
        event, self._event = self._event, b""
        if not data:
            return None
        return ServerSentEvent(b"\n".join(data).decode("utf-8", "replace"), _text(event), _text(self._id))


def _text(value: bytes) -> str:
    return value.decode("utf-8", "replace")

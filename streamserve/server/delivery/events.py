"""The joint between an API and the writers of its answers: events, the script that makes them, the collector of a whole answer.

An API implements these protocols, a writer uses them; neither knows the other. An event can write itself in the forms that its
readers take: as server-sent text when it is streamed as it is made, numbered when it is read from a log. Pure data.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

import orjson

from streamserve.errors import StreamserveError
from streamserve.types import TextDelta


class StreamedEvent(Protocol):
    """An event of a stream that is written while it is made."""

    def server_sent(self) -> bytes:
        """The event in an SSE stream, up to and with the blank line that ends it."""
        ...


class LoggedEvent(Protocol):
    """An event that can be kept in a log."""

    @property
    def num_bytes(self) -> int:
        """Roughly the memory it takes."""
        ...


class NumberedEvent(LoggedEvent, Protocol):
    """An event that is read from a log over SSE."""

    def server_sent(self, number: int) -> bytes:
        """As of `StreamedEvent`; `number` is the event's in its log, for an API whose events carry it."""
        ...


class SocketEvent(NumberedEvent, Protocol):
    """An event that is read from a log over a WebSocket, or over SSE."""

    def message(self, number: int, stream_id: bytes | None) -> str:
        """The event as one text message.

        number     of the event in its log
        stream_id  the client's name for the stream, a JSON string; None leaves it out
        """
        ...


E_co = TypeVar("E_co", covariant=True)


class Script(Protocol[E_co]):
    """Maps the deltas of one generation to the events of an API, in order; one instance per answer."""

    def opening(self) -> Sequence[E_co]:
        """The events that announce an admitted request, before its first token."""
        ...

    def delta(self, delta: TextDelta) -> Sequence[E_co]:
        """The events of choice `delta.index` for a delta; none when the delta completes no character."""
        ...

    def end(self) -> Sequence[E_co]:
        """The ending of an answer in which every choice has finished, cancelled ones included."""
        ...

    def failure(self, error: StreamserveError) -> Sequence[E_co]:
        """The ending of an answer that could not be finished."""
        ...


TextFrame = tuple[bytes, bytes]
"""The bytes before and after the JSON string of a text in a server-sent event."""


class StreamScript(Script[StreamedEvent], Protocol):
    """A script whose events are written while they are made."""

    def text_frame(self, index: int) -> TextFrame | None:
        """The frame of choice `index` once its events differ in nothing but their text; None until then.

        From then on a writer may frame texts by itself, and passes only the choice's last delta to `delta`.
        """
        ...


class Collector(Protocol):
    """Collects the deltas of one generation into an answer that is sent whole."""

    def add(self, delta: TextDelta) -> None:
        """Add a delta to choice `delta.index`."""
        ...

    @property
    def num_bytes(self) -> int:
        """Roughly the size of the body, which is made off the event loop when it is large."""
        ...

    def body(self) -> bytes:
        """The answer's JSON, once every choice has finished."""
        ...


def members(**fields: Any) -> bytes:
    """Members of a JSON object, without its braces."""
    return b",".join([orjson.dumps(name) + b":" + orjson.dumps(value) for name, value in fields.items()])


def socket_message(kind: str, number: int, stream_id: bytes | None, fields: bytes) -> str:
    """One WebSocket message of type `kind`; `fields` are its further members, if it has any."""
    echoed = b"" if stream_id is None else b'"stream_id":' + stream_id + b","
    rest = b"," + fields if fields else b""
    return (b'{"type":"%b",%b"sequence_number":%d%b}' % (kind.encode(), echoed, number, rest)).decode()

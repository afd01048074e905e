"""Many streams over one socket: which message belongs to which stream, and what to send on a new socket after one dropped.

Sans-IO: messages in, events out. A stream's messages are numbered; one seen before is dropped and a missing one is an error, so
that a reader gets every token once whatever happens to sockets. Every stream has an id that the client chose, by which a new
socket can resume it before any of its messages have arrived: only the server knows whether it got the create, which is sent
again only if it did not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Literal
from uuid import uuid4

import msgspec

from streamserve_client.errors import APIError, ClientError, ErrorDetail, ProtocolError, from_detail, from_event
from streamserve_client.types import ChatCompletion, Completion

Kind = Literal["chat.completion", "completion"]
Chunk = ChatCompletion | Completion

_CHUNKS: dict[str, type[Chunk]] = {"chat.completion": ChatCompletion, "completion": Completion}


@dataclass(frozen=True, slots=True)
class Finished:
    """The stream has ended: `completed`, or `cancelled` early."""

    status: str


StreamEvent = Chunk | Finished | ClientError


class _ServerMessage(msgspec.Struct, frozen=True):
    """Any message of the server; fields that it does not have are None."""

    type: str = ""
    stream_id: str | None = None
    sequence_number: int | None = None
    data: msgspec.Raw = msgspec.Raw(b"null")
    response_id: str | None = None
    status: str | int | None = None
    error: ErrorDetail | None = None


@dataclass(slots=True)
class _Stream:
    kind: Kind
    create: dict[str, Any]
    response_id: str
    last_number: int = -1
    is_cancelled: bool = False
    is_to_answer: bool = False
    is_resent: bool = False
    may_be_renamed: bool = True


@dataclass
class Multiplex:
    """The open streams of one client."""

    _streams: dict[str, _Stream] = field(default_factory=dict)
    _numbers: count[int] = field(default_factory=count)
    _replies: list[str] = field(default_factory=list)

    def open(self, kind: Kind, body: Mapping[str, Any]) -> tuple[str, str]:
        """Begin a stream; returns its id and the message to send."""
        stream_id = f"s{next(self._numbers)}"
        create = {"type": f"{kind}.create", "stream_id": stream_id, "resumable": True, "request_id": uuid4().hex, **body}
        self._streams[stream_id] = _Stream(kind, create, str(create["request_id"]), may_be_renamed="request_id" not in body)
        return stream_id, _encode(create)

    def cancel(self, stream_id: str) -> str | None:
        """End a stream early; returns the message to send, None when it has ended already. Its `Finished` still follows."""
        stream = self._streams.get(stream_id)
        if stream is None or stream.is_cancelled:
            return None
        stream.is_cancelled = True
        return _cancel(stream_id)

    def answer_now(self, stream_id: str) -> str | None:
        """End the reasoning of a stream; returns the message to send, None when the stream has ended."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return None
        stream.is_to_answer = True
        return _answer_now(stream_id)

    def cancel_all(self) -> list[str]:
        """End every open stream early; returns the messages to send."""
        return [message for stream_id in self._streams if (message := self.cancel(stream_id)) is not None]

    def reconnected(self) -> list[str]:
        """The messages to send first on a new socket, which resume every open stream."""
        self._replies.clear()
        messages = []
        for stream_id, stream in self._streams.items():
            messages.append(_encode(_resume(stream_id, stream)))
            if stream.is_cancelled:
                messages.append(_cancel(stream_id))
            elif stream.is_to_answer:
                messages.append(_answer_now(stream_id))
        return messages

    def take_replies(self) -> list[str]:
        """The messages to send in reply to those received."""
        replies, self._replies = self._replies, []
        return replies

    def receive(self, text: str | bytes) -> tuple[str, StreamEvent] | None:
        """The stream that a message belongs to, and its event; None for a message without news.

        Raises `ProtocolError` for anything but a message of this protocol.
        """
        try:
            message = msgspec.json.decode(text, type=_ServerMessage)
        except msgspec.MsgspecError as error:
            raise ProtocolError(f"the server sent something that is not a message of this protocol: {error}") from error
        if message.stream_id is None:
            _check_is_harmless(message)
            return None
        stream = self._streams.get(message.stream_id)
        if stream is None:
            return None
        event = self._event(message.stream_id, stream, message)
        return None if event is None else (message.stream_id, event)

    def _event(self, stream_id: str, stream: _Stream, message: _ServerMessage) -> StreamEvent | None:
        if message.type == "error":
            if stream.last_number < 0 and not stream.is_cancelled and self._resends_create(stream, message):
                return None
            del self._streams[stream_id]
            if stream.is_cancelled and _is_gap(message):
                return Finished("cancelled")
            return _failure(message, has_begun=stream.last_number >= 0)
        number = message.sequence_number
        if number is None or number <= stream.last_number:
            return None
        if number > stream.last_number + 1:
            del self._streams[stream_id]
            return ProtocolError(f"messages {stream.last_number + 1} to {number - 1} of the stream are missing")
        stream.last_number = number
        if message.type == f"{stream.kind}.done":
            del self._streams[stream_id]
            return Finished(str(message.status or "completed"))
        return _chunk(stream, message)

    def _resends_create(self, stream: _Stream, message: _ServerMessage) -> bool:
        """Queue the create again if the error only means that the server does not have it; returns whether it does."""
        is_taken = message.error is not None and message.error.param == "request_id"
        if is_taken and stream.is_resent and stream.may_be_renamed:
            # The first copy was being admitted when it was resumed: it is cancelled, and another one begins.
            self._replies.append(_encode({"type": "response.cancel", "response_id": stream.response_id}))
            stream.response_id = stream.create["request_id"] = uuid4().hex
        elif not _is_gap(message):
            return False
        stream.is_resent = True
        self._replies.append(_encode(stream.create))
        if stream.is_to_answer:
            self._replies.append(_answer_now(str(stream.create["stream_id"])))
        return True

    def fail_all(self) -> list[str]:
        """Forget every open stream; returns their ids."""
        stream_ids = list(self._streams)
        self._streams.clear()
        return stream_ids


def _cancel(stream_id: str) -> str:
    return _encode({"type": "response.cancel", "stream_id": stream_id})


def _answer_now(stream_id: str) -> str:
    return _encode({"type": "response.answer", "stream_id": stream_id})


def _resume(stream_id: str, stream: _Stream) -> dict[str, Any]:
    return {
        "type": "response.resume",
        "response_id": stream.response_id,
        "starting_after": stream.last_number,
        "stream_id": stream_id,
    }


def _chunk(stream: _Stream, message: _ServerMessage) -> StreamEvent:
    try:
        chunk = msgspec.json.decode(message.data, type=_CHUNKS[stream.kind])
    except msgspec.MsgspecError as error:
        return ProtocolError(f"{message.type}: not a chunk of this API: {error}")
    stream.response_id = chunk.id or stream.response_id
    return chunk


def _is_gap(message: _ServerMessage) -> bool:
    return message.error is not None and message.error.code == "resume_gap"


def _failure(message: _ServerMessage, *, has_begun: bool) -> APIError:
    detail = message.error or ErrorDetail()
    if has_begun or not isinstance(message.status, int):
        return from_event(detail)
    return from_detail(message.status, detail)


def _check_is_harmless(message: _ServerMessage) -> None:
    # A cancel, or the word to answer, that crosses the end of its stream finds nothing: 404.
    if message.type == "error" and message.status != 404:
        detail = message.error or ErrorDetail(message="unknown error")
        raise ProtocolError(f"the server did not understand a message: {detail.message}")


def _encode(message: Mapping[str, Any]) -> str:
    return msgspec.json.encode(message).decode()

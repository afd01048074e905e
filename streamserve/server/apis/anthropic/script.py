"""A message as Anthropic's events: message_start, the blocks, message_delta with how it ended, message_stop.

One script an answer, on one API worker's event loop. https://docs.anthropic.com/en/docs/build-with-claude/streaming
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
import orjson

from streamserve.errors import StreamserveError
from streamserve.server.apis.anthropic.blocks import BlockDelta, Blocks, BlockStart, Change, parsed_input
from streamserve.server.apis.anthropic.errors import error_object
from streamserve.server.apis.openai.answers.reading import Reading
from streamserve.server.delivery.events import TextFrame, members, socket_message
from streamserve.server.telemetry.request_cost import TokenCounts
from streamserve.types import TextDelta


class MessageForm(msgspec.Struct, frozen=True, kw_only=True):
    """What one message is made with.

    usage    kept up to date by the run's account
    reading  as of `Blocks`
    """

    id: str
    model: str
    usage: TokenCounts
    reading: Reading | None

    def message(self, content: list[dict[str, Any]], ending: dict[str, str | None]) -> dict[str, Any]:
        """The message object."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            **ending,
            "usage": usage_object(self.usage),
        }


class MessageEvent(NamedTuple):
    """One event: its type and the further members of its JSON object."""

    type: str
    fields: bytes = b""

    @property
    def num_bytes(self) -> int:
        """Roughly the memory it takes."""
        return len(self.fields)

    def server_sent(self, number: int = 0) -> bytes:
        """The event in an SSE stream; its number is no part of it."""
        kind = self.type.encode()
        return b'event: %b\ndata: {"type":"%b"%b}\n\n' % (kind, kind, b"," + self.fields if self.fields else b"")

    def message(self, number: int, stream_id: bytes | None) -> str:
        """The event as a WebSocket message, for a reader that goes on there."""
        return socket_message(self.type, number, stream_id, self.fields)


def failure_event(error: StreamserveError) -> MessageEvent:
    """The ending of a message that could not be finished, or that goes on without this reader."""
    return MessageEvent("error", members(error=error_object(error)))


class MessageScript:
    """The events of one message."""

    def __init__(self, form: MessageForm) -> None:
        self._form = form
        self._blocks = Blocks(form.reading)

    def opening(self) -> list[MessageEvent]:
        started = self._form.message([], {"stop_reason": None, "stop_sequence": None})
        return [MessageEvent("message_start", members(message=started))]

    def delta(self, delta: TextDelta) -> list[MessageEvent]:
        events = [_event(change) for change in self._blocks.read(delta)]
        if delta.finish_reason is not None:
            ending = members(delta=self._blocks.stop_reason(delta), usage=usage_object(self._form.usage))
            events.append(MessageEvent("message_delta", ending))
        return events

    def text_frame(self, index: int) -> TextFrame | None:
        block = self._blocks.plain_index
        if block is None:
            return None
        head = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,' % block
        return head + b'"delta":{"type":"text_delta","text":', b"}}\n\n"

    def end(self) -> list[MessageEvent]:
        return [MessageEvent("message_stop")]

    def failure(self, error: StreamserveError) -> list[MessageEvent]:
        return [failure_event(error)]


def _event(change: Change) -> MessageEvent:
    match change:
        case BlockStart(number, block):
            return MessageEvent("content_block_start", members(index=number, content_block=block))
        case BlockDelta(number, kind, field, text):
            return MessageEvent("content_block_delta", members(index=number, delta={"type": kind, field: text}))
        case _:
            return MessageEvent("content_block_stop", members(index=change.number))


def usage_object(usage: TokenCounts) -> dict[str, Any]:
    """Token counts; here `input_tokens` are those that were not cached."""
    return {
        "input_tokens": usage.prompt_tokens - usage.cached_tokens,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached_tokens,
        "output_tokens": usage.completion_tokens,
    }


class MessageCollector:
    """One message, collected to be sent whole."""

    def __init__(self, form: MessageForm) -> None:
        self._form = form
        self._blocks = Blocks(form.reading)
        self._content: list[tuple[dict[str, Any], list[str]]] = []
        self._ending: dict[str, str | None] = {}

    def add(self, delta: TextDelta) -> None:
        for change in self._blocks.read(delta):
            match change:
                case BlockStart(_, block):
                    self._content.append((block, []))
                case BlockDelta():
                    self._content[-1][1].append(change.text)
        if delta.finish_reason is not None:
            self._ending = self._blocks.stop_reason(delta)

    @property
    def num_bytes(self) -> int:
        return sum(len(text) for _, texts in self._content for text in texts)

    def body(self) -> bytes:
        return orjson.dumps(self._form.message([_whole(block, "".join(texts)) for block, texts in self._content], self._ending))


def _whole(block: dict[str, Any], text: str) -> dict[str, Any]:
    if block["type"] == "tool_use":
        # A call that was cut has no input that is one; `stop_reason` says that it was.
        return {**block, "input": parsed_input(text) or {}}
    return {**block, block["type"]: text}

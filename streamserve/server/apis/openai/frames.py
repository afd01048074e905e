"""Text deltas in, wire bytes out: the one encoder of streamed completions and chats, for SSE and for WebSockets.

A frame is one JSON object between the two byte strings of its `Framing`. JSON holds no raw newline, so frames made with `LINES`
can be taken apart again with `splitlines()`. A plain text event, the common case, costs one concatenation: all but its text is
encoded once per choice.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
import orjson

from streamserve.errors import StreamserveError
from streamserve.server.apis.openai.logprobs import CompletionLogprobs, TokenNames, chat_logprobs, joined
from streamserve.server.apis.openai.reading import MessageReader, Reading
from streamserve.server.http.errors import error_object
from streamserve.server.telemetry.request_cost import Usage
from streamserve.types import TextDelta, TextLogprob

_TEXT = "\x00text\x00"
_ENCODED_TEXT = orjson.dumps(_TEXT)


class Framing(NamedTuple):
    """What stands before and after the JSON of each event."""

    before: bytes
    after: bytes


SSE = Framing(b"data: ", b"\n\n")
LINES = Framing(b"", b"\n")


class StreamFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What the events of one stream carry.

    logprobs          alternatives per token; None for no logprobs
    include_usage     one more event with the usage at the end, `usage: null` on the others
    continuous_usage  the usage so far on every event
    token_ids         the ids behind each event's text, and those of the prompt on a choice's first
    reading           how a chat's message is read out of the text; None when all text is content
    """

    id: str
    created: int
    model: str
    names: TokenNames
    logprobs: int | None = None
    include_usage: bool = False
    continuous_usage: bool = False
    token_ids: bool = False
    reading: Reading | None = None

    @property
    def is_plain(self) -> bool:
        return self.logprobs is None and not self.continuous_usage and not self.token_ids


class ChoicePreamble(msgspec.Struct, frozen=True, kw_only=True):
    """What a choice's first event tells about its prompt.

    echo         the prompt's text when it is to be repeated
    first_token  the prompt's first token, which has no logprobs of its own
    """

    prompt_token_ids: list[int] = []
    echo: str | None = None
    first_token: TextLogprob | None = None


class _Choice:
    """What must be remembered between the events of one choice; `is_plain` once only its text changes from event to event."""

    __slots__ = ("head", "index", "is_plain", "logprobs", "preamble", "reader", "tail")

    def __init__(
        self, index: int, preamble: ChoicePreamble, head: bytes, tail: bytes, logprobs: CompletionLogprobs | None
    ) -> None:
        self.index = index
        self.preamble: ChoicePreamble | None = preamble
        self.head = head
        self.tail = tail
        self.is_plain = False
        self.logprobs = logprobs
        self.reader: MessageReader | None = None


class Frames(ABC):
    """The events of one streamed answer, in order; subclasses say what an event of their endpoint looks like."""

    object_name: str

    def __init__(self, format: StreamFormat, preambles: Sequence[ChoicePreamble], usage: Usage, framing: Framing = SSE) -> None:
        self._format = format
        self._usage = usage
        self._framing = framing
        self._choices = [self._new_choice(index, preamble) for index, preamble in enumerate(preambles)]

    def delta(self, delta: TextDelta) -> bytes:
        """The events of choice `delta.index`: none without a complete character, several at its start and end."""
        choice = self._choices[delta.index]
        if choice.is_plain and delta.finish_reason is None:
            text = delta.text
            return choice.head + orjson.dumps(text) + choice.tail if text else b""
        return self._events(choice, delta)

    def end(self) -> bytes:
        """The last bytes of an answer in which every choice has finished."""
        if not self._format.include_usage:
            return self.done
        return self._frame({**self._envelope(), "choices": [], "usage": self._usage.as_object()}) + self.done

    def failure(self, error: StreamserveError) -> bytes:
        """The last bytes of an answer that could not be finished."""
        return self._frame(error_object(error)) + self.done

    @property
    def done(self) -> bytes:
        """The marker after which a client expects nothing more."""
        return self._framing.before + b"[DONE]" + self._framing.after

    def _new_choice(self, index: int, preamble: ChoicePreamble) -> _Choice:
        head, tail = self._frame(self._text_event(index, _TEXT)).split(_ENCODED_TEXT)
        return _Choice(index, preamble, head, tail, self._new_logprobs())

    def _new_logprobs(self) -> CompletionLogprobs | None:
        return None

    def _frame(self, event: dict[str, Any]) -> bytes:
        return self._framing.before + orjson.dumps(event) + self._framing.after

    def _envelope(self) -> dict[str, Any]:
        return {
            "id": self._format.id,
            "object": self.object_name,
            "created": self._format.created,
            "model": self._format.model,
        }

    def _event(self, choice: dict[str, Any], **fields: Any) -> dict[str, Any]:
        event = {**self._envelope(), "choices": [choice], **fields}
        if self._format.continuous_usage:
            event["usage"] = self._usage.as_object()
        elif self._format.include_usage:
            event["usage"] = None
        return event

    @abstractmethod
    def _events(self, choice: _Choice, delta: TextDelta) -> bytes:
        """Every frame for `delta`, whatever the format asks for."""

    @abstractmethod
    def _text_event(self, index: int, text: str) -> dict[str, Any]:
        """An event with nothing but text."""


class CompletionFrames(Frames):
    """Events of /v1/completions: the finish reason rides on the last text."""

    object_name = "text_completion"

    def _new_logprobs(self) -> CompletionLogprobs | None:
        top = self._format.logprobs
        return None if top is None else CompletionLogprobs(self._format.names, top)

    def _text_event(self, index: int, text: str) -> dict[str, Any]:
        return self._event({"index": index, "text": text, "logprobs": None, "finish_reason": None})

    def _events(self, choice: _Choice, delta: TextDelta) -> bytes:
        preamble, choice.preamble = choice.preamble, None
        choice.is_plain = self._format.is_plain
        text = delta.text if preamble is None or preamble.echo is None else preamble.echo + delta.text
        if not text and delta.finish_reason is None and choice.is_plain:
            return b""
        body: dict[str, Any] = {"index": choice.index, "text": text, "logprobs": None, "finish_reason": finish_reason(delta)}
        if choice.logprobs is not None:
            body["logprobs"] = _completion_logprobs(choice.logprobs, preamble, delta)
        if self._format.token_ids:
            body["token_ids"] = delta.token_ids
            if preamble is not None:
                body["prompt_token_ids"] = preamble.prompt_token_ids
        if delta.finish_reason is not None:
            body["stop_reason"] = delta.stop_reason
        return self._frame(self._event(body))


def _completion_logprobs(logprobs: CompletionLogprobs, preamble: ChoicePreamble | None, delta: TextDelta) -> dict[str, Any]:
    parts = []
    if preamble is not None and preamble.first_token is not None and delta.prompt_logprobs is not None:
        rest = [entry for entry in delta.prompt_logprobs[1:] if entry is not None]
        parts.append(logprobs.of_prompt(preamble.first_token, rest))
    parts.append(logprobs.of(delta.logprobs or ()))
    return joined(parts)


class ChatFrames(Frames):
    """Events of /v1/chat/completions: the role, then content, then one finish event with an empty delta."""

    object_name = "chat.completion.chunk"

    def _text_event(self, index: int, text: str) -> dict[str, Any]:
        return self._event(self._body(index, {"content": text}))

    def _new_choice(self, index: int, preamble: ChoicePreamble) -> _Choice:
        choice = super()._new_choice(index, preamble)
        if self._format.reading is not None:
            choice.reader = MessageReader(self._format.reading)
        return choice

    def _events(self, choice: _Choice, delta: TextDelta) -> bytes:
        said = self._said(choice, delta)
        if not said and delta.finish_reason is None:
            return b""
        frames = b""
        if choice.preamble is not None:
            frames = self._role(choice.index, choice.preamble)
            choice.preamble = None
        choice.is_plain = self._format.is_plain and (choice.reader is None or choice.reader.is_plain)
        frames += b"".join(self._frame(self._event(body)) for body in said)
        if delta.finish_reason is not None:
            frames += self._finish(choice, delta)
        return frames

    def _said(self, choice: _Choice, delta: TextDelta) -> list[dict[str, Any]]:
        """The choice objects for a text. The first of them accounts for the tokens, those held back before included."""
        token_ids, logprobs = delta.token_ids, delta.logprobs or []
        if choice.reader is None:
            messages = [{"content": delta.text}] if delta.text else []
        else:
            messages = choice.reader.read(delta)
            if not messages and delta.finish_reason is None:
                return []
            token_ids, logprobs = choice.reader.take_tokens()
        if not messages and token_ids and not self._format.is_plain:
            messages = [{"content": ""}]
        said = [self._body(choice.index, message) for message in messages]
        if said and self._format.logprobs is not None:
            said[0]["logprobs"] = chat_logprobs(self._format.names, logprobs, self._format.logprobs)
        if said and self._format.token_ids:
            said[0]["token_ids"] = token_ids
        return said

    def _body(self, index: int, message: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"index": index, "delta": message, "logprobs": None, "finish_reason": reason}

    def _role(self, index: int, preamble: ChoicePreamble) -> bytes:
        extra = {"prompt_token_ids": preamble.prompt_token_ids} if self._format.token_ids else {}
        return self._frame(self._event(self._body(index, {"role": "assistant", "content": ""}), **extra))

    def _finish(self, choice: _Choice, delta: TextDelta) -> bytes:
        reason = finish_reason(delta)
        if choice.reader is not None:
            reason = choice.reader.finish_reason(reason)
        return self._frame(self._event({**self._body(choice.index, {}, reason), "stop_reason": delta.stop_reason}))


def finish_reason(delta: TextDelta) -> str | None:
    """The reason as clients know it: a spent time budget is a length to them."""
    return "length" if delta.finish_reason == "time" else delta.finish_reason

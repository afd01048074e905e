"""Scripts of completions and chats: text deltas in, chunks out; the same for SSE and for WebSockets.

One per answer, on one API worker's event loop. All of a chunk but its choice is encoded once per answer, and all of a choice
but its text once per choice: an event with nothing but text, the common case, costs one concatenation.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any

import msgspec
import orjson

from streamserve.errors import StreamserveError
from streamserve.server.apis.openai.answers.events import BLANK_LINE, DATA, Chunk, Done, Event, Failure
from streamserve.server.apis.openai.answers.logprobs import LogprobArrays, TokenNames, chat_logprobs, encoded, slices
from streamserve.server.apis.openai.answers.reading import MessageReader, Reading
from streamserve.server.delivery.events import TextFrame, members
from streamserve.server.telemetry.request_cost import TokenCounts
from streamserve.text.parsing.json_values import JsonValues
from streamserve.types import TextDelta, TextLogprob
from streamserve.types.progress import PrefillProgress, Progress, QueueProgress

_STATES: dict[type[Progress], str] = {QueueProgress: "queued", PrefillProgress: "prefill"}


class StreamFormat(msgspec.Struct, frozen=True, kw_only=True):
    """What the events of one stream carry.

    logprobs          alternatives per token; None for no logprobs
    include_usage     one more event with the usage at the end, `usage: null` on the others
    continuous_usage  the usage so far on every event
    token_ids         the ids behind each event's text, and those of the prompt on a choice's first
    hidden_ids        special tokens that are left out of the text
    reading           how a chat's message is read out of the text; None when all text is content
    partial_json      the values inside the content, each once it is complete
    """

    id: str
    created: int
    model: str
    names: TokenNames
    logprobs: int | None = None
    include_usage: bool = False
    continuous_usage: bool = False
    token_ids: bool = False
    hidden_ids: frozenset[int] = frozenset()
    reading: Reading | None = None
    partial_json: bool = False

    @property
    def is_text_only(self) -> bool:
        """Whether a chunk carries nothing about its tokens but their text."""
        return self.logprobs is None and not (self.continuous_usage or self.token_ids or self.partial_json)


class ChoicePreamble(msgspec.Struct, frozen=True, kw_only=True):
    """The prompt's part in a choice's first event.

    echo         the prompt's text when it is to be repeated
    first_token  the prompt's first token, which has no logprobs of its own
    """

    prompt_token_ids: list[int] = []
    echo: str | None = None
    first_token: TextLogprob | None = None


class _StreamedChoice:
    """State between the chunks of one choice.

    frame         what stands around a text in a chunk that holds nothing else
    is_text_only  whether all further chunks but the last hold nothing else
    """

    __slots__ = ("frame", "index", "is_text_only", "logprobs", "preamble", "reader", "values")

    def __init__(self, index: int, preamble: ChoicePreamble, frame: TextFrame) -> None:
        self.index = index
        self.preamble: ChoicePreamble | None = preamble
        self.frame = frame
        self.is_text_only = False
        self.logprobs: LogprobArrays | None = None
        self.reader: MessageReader | None = None
        self.values: JsonValues | None = None


class ChunkScript(ABC):
    """The chunks of one streamed answer; subclasses make the choice objects of their endpoint.

    preambles  one per choice
    usage      kept up to date by the run's account
    """

    kind: str
    object_name: str

    def __init__(self, format: StreamFormat, preambles: Sequence[ChoicePreamble], usage: TokenCounts) -> None:
        self._format = format
        self._usage = usage
        self._status = "completed"
        envelope = members(id=format.id, object=self.object_name, created=format.created, model=format.model)
        self._head = b"{" + envelope + b',"choices":['
        self._choices = [self._new_choice(index, preamble) for index, preamble in enumerate(preambles)]

    def opening(self) -> list[Event]:
        """Nothing: a choice begins with its first token."""
        return []

    def delta(self, delta: TextDelta) -> list[Event]:
        """None without a complete character, several at the start and end of a choice."""
        choice = self._choices[delta.index]
        if choice.is_text_only and delta.finish_reason is None:
            before, after = choice.frame
            return [Chunk(self.kind, before + orjson.dumps(delta.text) + after)] if delta.text else []
        if delta.finish_reason == "abort":
            self._status = "cancelled"
        if delta.progress is None:
            return self._chunks(choice, delta)
        progress: list[Event] = [self._progress(delta.index, delta.progress)]
        return progress if delta.is_progress_only else [*progress, *self._chunks(choice, delta)]

    def text_frame(self, index: int) -> TextFrame | None:
        """The frame of a choice whose chunks differ in nothing but their text."""
        choice = self._choices[index]
        if not choice.is_text_only:
            return None
        before, after = choice.frame
        return DATA + before, after + BLANK_LINE

    def end(self) -> list[Event]:
        """The usage, where it is wanted, then the ending."""
        done = Done(self.kind, self._format.id, self._status)
        if not self._format.include_usage:
            return [done]
        usage = orjson.dumps(self._usage.as_object())
        return [Chunk(self.kind, self._head + b'],"usage":' + usage + b"}"), done]

    def failure(self, error: StreamserveError) -> list[Event]:
        """The one error event."""
        return [Failure(error)]

    def _chunk(self, choice: dict[str, Any], *, unsent_tokens: int = 0, **fields: Any) -> Chunk:
        """The chunk of one choice, and `fields` beside it.

        unsent_tokens  of those generated so far, which later chunks bring
        """
        return Chunk(self.kind, self._head + orjson.dumps(choice) + self._tail(unsent_tokens, **fields))

    def _progress(self, index: int, progress: Progress) -> Chunk:
        """A chunk without a choice, which clients that don't know of progress skip."""
        state = msgspec.structs.asdict(progress)
        return Chunk(self.kind, self._head + self._tail(progress={"index": index, "state": _STATES[type(progress)], **state}))

    def _values(self, choice: _StreamedChoice, content: str) -> Iterator[Chunk]:
        """A chunk without a choice for each value that this content completes."""
        if choice.values is None:
            return
        before = self._head + self._tail()[:-1] + b',"partial_json":{"index":%d,"path":' % choice.index
        for value in choice.values.push(content):
            yield Chunk(self.kind, before + value.path.encode() + b',"value":' + value.text.encode() + b"}}")

    def _tail(self, unsent_tokens: int = 0, **fields: Any) -> bytes:
        if self._format.continuous_usage:
            fields["usage"] = self._usage.as_object(unsent_tokens=unsent_tokens)
        elif self._format.include_usage:
            fields["usage"] = None
        return b"]," + members(**fields) + b"}" if fields else b"]}"

    def _new_choice(self, index: int, preamble: ChoicePreamble) -> _StreamedChoice:
        before, after = self._text_frame(index)
        choice = _StreamedChoice(index, preamble, (self._head + before, after + self._tail()))
        if self._format.partial_json:
            choice.values = JsonValues()
        return choice

    @abstractmethod
    def _text_frame(self, index: int) -> TextFrame:
        """What stands around a text in a choice object that holds nothing else."""

    @abstractmethod
    def _chunks(self, choice: _StreamedChoice, delta: TextDelta) -> list[Event]:
        """Every chunk for `delta`, whatever the format wants."""


class CompletionScript(ChunkScript):
    """Chunks of /v1/completions: the finish reason comes with the last text."""

    kind = "completion"
    object_name = "text_completion"

    def _new_choice(self, index: int, preamble: ChoicePreamble) -> _StreamedChoice:
        choice = super()._new_choice(index, preamble)
        if self._format.logprobs is not None:
            choice.logprobs = LogprobArrays(self._format.names, self._format.logprobs, hidden_ids=self._format.hidden_ids)
        return choice

    def _text_frame(self, index: int) -> TextFrame:
        return b'{"index":%d,"text":' % index, b',"logprobs":null,"finish_reason":null}'

    def _chunks(self, choice: _StreamedChoice, delta: TextDelta) -> list[Event]:
        preamble, choice.preamble = choice.preamble, None
        choice.is_text_only = self._format.is_text_only
        text = delta.text if preamble is None or preamble.echo is None else preamble.echo + delta.text
        if not text and delta.finish_reason is None and choice.is_text_only:
            return []
        body: dict[str, Any] = {"index": choice.index, "text": text, "logprobs": None, "finish_reason": finish_reason(delta)}
        if choice.logprobs is not None:
            body["logprobs"] = _completion_logprobs(choice.logprobs, preamble, delta)
        if self._format.token_ids:
            body["token_ids"] = delta.token_ids
            if preamble is not None:
                body["prompt_token_ids"] = preamble.prompt_token_ids
        if delta.finish_reason is not None:
            body["stop_reason"] = delta.stop_reason
        return [self._chunk(body), *self._values(choice, delta.text)]


def _completion_logprobs(logprobs: LogprobArrays, preamble: ChoicePreamble | None, delta: TextDelta) -> dict[str, Any]:
    parts: list[dict[str, Any]] = []
    if preamble is not None and preamble.first_token is not None and delta.prompt_logprobs is not None:
        parts += [logprobs.of_first(preamble.first_token), *map(logprobs.of_rest, slices(delta.prompt_logprobs))]
    return encoded([*parts, logprobs.of(delta.logprobs or ())])


class ChatScript(ChunkScript):
    """Chunks of /v1/chat/completions: the role, then content, then one finish chunk with an empty delta."""

    kind = "chat.completion"
    object_name = "chat.completion.chunk"

    def _new_choice(self, index: int, preamble: ChoicePreamble) -> _StreamedChoice:
        choice = super()._new_choice(index, preamble)
        if self._format.reading is not None:
            choice.reader = MessageReader(self._format.reading)
        return choice

    def _text_frame(self, index: int) -> TextFrame:
        return b'{"index":%d,"delta":{"content":' % index, b'},"logprobs":null,"finish_reason":null}'

    def _chunks(self, choice: _StreamedChoice, delta: TextDelta) -> list[Event]:
        bodies = self._bodies(choice, delta)
        if not bodies and delta.finish_reason is None:
            return []
        chunks: list[Event] = []
        if choice.preamble is not None:
            chunks.append(self._role(choice.index, choice.preamble, len(delta.token_ids)))
            choice.preamble = None
        choice.is_text_only = self._format.is_text_only and (choice.reader is None or choice.reader.is_plain)
        chunks += [self._chunk(body) for body in bodies]
        if choice.values is not None:
            chunks += self._values(choice, "".join(body["delta"].get("content", "") for body in bodies))
        if delta.finish_reason is not None:
            chunks.append(self._finish(choice, delta))
        return chunks

    def _bodies(self, choice: _StreamedChoice, delta: TextDelta) -> list[dict[str, Any]]:
        """The choice objects for a text. The first of them accounts for the tokens, those held back before included."""
        token_ids, logprobs = delta.token_ids, delta.logprobs or []
        if choice.reader is None:
            messages = [{"content": delta.text}] if delta.text else []
        else:
            messages = choice.reader.read(delta)
            if not messages and delta.finish_reason is None:
                return []
            token_ids, logprobs = choice.reader.take_tokens()
        if not messages and token_ids and not self._format.is_text_only:
            messages = [{"content": ""}]
        bodies = [_body(choice.index, message) for message in messages]
        if bodies and self._format.logprobs is not None:
            bodies[0]["logprobs"] = chat_logprobs(self._format.names, logprobs, self._format.logprobs)
        if bodies and self._format.token_ids:
            bodies[0]["token_ids"] = token_ids
        return bodies

    def _role(self, index: int, preamble: ChoicePreamble, unsent_tokens: int) -> Chunk:
        extra = {"prompt_token_ids": preamble.prompt_token_ids} if self._format.token_ids else {}
        return self._chunk(_body(index, {"role": "assistant", "content": ""}), unsent_tokens=unsent_tokens, **extra)

    def _finish(self, choice: _StreamedChoice, delta: TextDelta) -> Chunk:
        reason = finish_reason(delta)
        if choice.reader is not None:
            reason = choice.reader.finish_reason(reason)
        return self._chunk({**_body(choice.index, {}, reason), "stop_reason": delta.stop_reason})


def _body(index: int, message: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
    return {"index": index, "delta": message, "logprobs": None, "finish_reason": reason}


def finish_reason(delta: TextDelta) -> str | None:
    """The reason as clients know it: a spent time budget is a length to them."""
    return "length" if delta.finish_reason == "time" else delta.finish_reason

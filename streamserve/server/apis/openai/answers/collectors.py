"""The whole answer at once: text deltas collected into the response objects of completions and chat.

Pure data; the streamed counterpart is `script`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import orjson

from streamserve.server.apis.openai.answers.logprobs import LogprobArrays, chat_logprobs, encoded, prompt_logprobs, slices
from streamserve.server.apis.openai.answers.reading import MessageBuilder, MessageReader, message_object
from streamserve.server.apis.openai.answers.script import ChoicePreamble, StreamFormat, finish_reason
from streamserve.server.telemetry.request_cost import TokenCounts
from streamserve.types import TextDelta, TextLogprob

_UNUSED = {"service_tier": None, "system_fingerprint": None, "kv_transfer_params": None}
"""Fields that clients of OpenAI and vLLM find in every answer, and that have no meaning here."""

_BYTES_PER_CHOICE, _BYTES_PER_LOGPROB = 256, 64


class _CollectedChoice:
    """The deltas of one choice so far."""

    __slots__ = ("index", "last", "logprobs", "preamble", "prompt_logprobs", "texts", "token_ids")

    def __init__(self, index: int, preamble: ChoicePreamble) -> None:
        self.index = index
        self.preamble = preamble
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TextLogprob] = []
        self.prompt_logprobs: Sequence[TextLogprob | None] | None = None
        self.last: TextDelta | None = None

    def add(self, delta: TextDelta) -> None:
        self.texts.append(delta.text)
        self.token_ids += delta.token_ids
        if delta.logprobs is not None:
            self.logprobs += delta.logprobs
        if delta.prompt_logprobs is not None:
            self.prompt_logprobs = delta.prompt_logprobs
        self.last = delta

    @property
    def text(self) -> str:
        return "".join(self.texts)

    @property
    def num_bytes(self) -> int:
        """Roughly what it takes as JSON."""
        scored = [*self.logprobs[:1], *(self.prompt_logprobs or ())[-1:]]
        per_token = max((len(token.top) + 1 for token in scored if token is not None), default=0) * _BYTES_PER_LOGPROB
        num_scored = len(self.logprobs) + len(self.prompt_logprobs or ())
        return _BYTES_PER_CHOICE + sum(map(len, self.texts)) + num_scored * per_token

    def ending(self) -> dict[str, Any]:
        assert self.last is not None
        return {"finish_reason": finish_reason(self.last), "stop_reason": self.last.stop_reason}


class AnswerCollector(ABC):
    """One answer being collected, see `delivery.events.Collector`; subclasses make the choice objects of their endpoint.

    prompt_logprobs  whether the answer repeats them (with `echo` they are part of the choice's logprobs instead)
    """

    object_name: str

    def __init__(
        self, format: StreamFormat, preambles: Sequence[ChoicePreamble], usage: TokenCounts, *, prompt_logprobs: bool = False
    ) -> None:
        self._format = format
        self._usage = usage
        self._has_prompt_logprobs = prompt_logprobs
        self._choices = [_CollectedChoice(index, preamble) for index, preamble in enumerate(preambles)]

    def add(self, delta: TextDelta) -> None:
        """Add a delta to its choice."""
        self._choices[delta.index].add(delta)

    @property
    def num_bytes(self) -> int:
        """Roughly the size of the body."""
        return sum(choice.num_bytes for choice in self._choices)

    def body(self) -> bytes:
        """The response's JSON, once every choice has finished."""
        return orjson.dumps(
            {
                "id": self._format.id,
                "object": self.object_name,
                "created": self._format.created,
                "model": self._format.model,
                "choices": [self._choice(choice) for choice in self._choices],
                "usage": self._usage.as_object(),
                **_UNUSED,
                **self._extra(),
            }
        )

    @abstractmethod
    def _choice(self, choice: _CollectedChoice) -> dict[str, Any]:
        """The object of one choice."""

    def _extra(self) -> dict[str, Any]:
        """Fields of the answer itself."""
        return {}

    def _prompt_logprobs(self, choice: _CollectedChoice) -> orjson.Fragment | None:
        if not self._has_prompt_logprobs or choice.prompt_logprobs is None:
            return None
        names, entries = self._format.names, choice.prompt_logprobs
        return encoded({"entries": prompt_logprobs(names, some)} for some in slices(entries))["entries"]


class CompletionCollector(AnswerCollector):
    """The answer of /v1/completions."""

    object_name = "text_completion"

    def _choice(self, choice: _CollectedChoice) -> dict[str, Any]:
        has_token_ids = self._format.token_ids
        return {
            "index": choice.index,
            "text": (choice.preamble.echo or "") + choice.text,
            "logprobs": self._logprobs(choice),
            **choice.ending(),
            "prompt_logprobs": self._prompt_logprobs(choice),
            "token_ids": choice.token_ids if has_token_ids else None,
            "prompt_token_ids": choice.preamble.prompt_token_ids if has_token_ids else None,
        }

    def _logprobs(self, choice: _CollectedChoice) -> dict[str, Any] | None:
        if self._format.logprobs is None:
            return None
        logprobs = LogprobArrays(self._format.names, self._format.logprobs, hidden_ids=self._format.hidden_ids)
        parts: list[Iterable[dict[str, Any]]] = []
        if choice.preamble.first_token is not None and choice.prompt_logprobs is not None:
            parts += [[logprobs.of_first(choice.preamble.first_token)], map(logprobs.of_rest, slices(choice.prompt_logprobs))]
        return encoded(chain(*parts, map(logprobs.of, slices(choice.logprobs))))


class ChatCollector(AnswerCollector):
    """The answer of /v1/chat/completions."""

    object_name = "chat.completion"

    def _choice(self, choice: _CollectedChoice) -> dict[str, Any]:
        message, reason = self._message(choice)
        return {
            "index": choice.index,
            "message": message,
            "logprobs": self._logprobs(choice),
            **choice.ending(),
            "finish_reason": reason,
            "token_ids": choice.token_ids if self._format.token_ids else None,
        }

    def _logprobs(self, choice: _CollectedChoice) -> dict[str, Any] | None:
        names, top = self._format.names, self._format.logprobs
        return None if top is None else encoded(chat_logprobs(names, some, top) for some in slices(choice.logprobs))

    def _message(self, choice: _CollectedChoice) -> tuple[dict[str, Any], str | None]:
        """The message, and why it ended."""
        assert choice.last is not None
        reason = finish_reason(choice.last)
        if self._format.reading is None:
            return message_object(choice.text), reason
        reader, message = MessageReader(self._format.reading), MessageBuilder()
        for fields in reader.read(TextDelta(choice.text, finish_reason=choice.last.finish_reason)):
            message.add(fields)
        return message.as_object(), reader.finish_reason(reason)

    def _extra(self) -> dict[str, Any]:
        first = self._choices[0]
        return {
            "prompt_logprobs": self._prompt_logprobs(first),
            "prompt_token_ids": first.preamble.prompt_token_ids if self._format.token_ids else None,
        }

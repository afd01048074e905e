"""The events of one response, from `response.created` to its one terminal event.

Runs inside the response's producer.
"""

from __future__ import annotations

from typing import Any

from streamserve.errors import StreamserveError
from streamserve.server.event_log import Entry
from streamserve.server.logprobs import TokenNames, chat_logprobs
from streamserve.server.responses.output import MessageItem, event
from streamserve.server.responses.record import ResponseRecord
from streamserve.types import FinishReason, TextDelta


class ResponseScript:
    """See `producer.Script`.

    top_logprobs  alternatives per token; None for no logprobs
    """

    def __init__(self, record: ResponseRecord, *, top_logprobs: int | None) -> None:
        self._record = record
        self._top_logprobs = top_logprobs
        self._names = TokenNames()
        self._message: MessageItem | None = None
        self._ending: FinishReason = "stop"

    def opening(self) -> list[Entry]:
        response = self._record.as_object()
        return [event("response.created", response=response), event("response.in_progress", response=response)]

    def delta(self, delta: TextDelta) -> list[Entry]:
        if delta.finish_reason is not None:
            self._ending = delta.finish_reason
        logprobs = self._logprobs(delta)
        if not delta.text and not logprobs:
            return []
        opening, message = self._open_message()
        return [*opening, message.add(delta.text, logprobs)]

    def end(self) -> list[Entry]:
        opening, message = self._open_message()
        record = self._record
        if self._ending == "stop":
            closing = message.close("completed")
            record.finish("completed")
        else:
            closing = message.close("incomplete")
            is_cancelled = self._ending == "abort"
            record.finish("cancelled" if is_cancelled else "incomplete", reason=None if is_cancelled else "max_output_tokens")
        kind = "response.completed" if record.status == "completed" else "response.incomplete"
        return [*opening, *closing, event(kind, response=record.as_object())]

    def failure(self, error: StreamserveError) -> list[Entry]:
        closing = [] if self._message is None else self._message.close("incomplete")
        self._record.finish("failed", error=error)
        return [*closing, event("response.failed", response=self._record.as_object())]

    def _open_message(self) -> tuple[list[Entry], MessageItem]:
        """The message that text goes to, and the events that announce it the first time."""
        if self._message is not None:
            return [], self._message
        self._message = MessageItem(len(self._record.output))
        opening = self._message.open()
        self._record.output.append(self._message)
        return opening, self._message

    def _logprobs(self, delta: TextDelta) -> list[dict[str, Any]] | None:
        if self._top_logprobs is None or not delta.logprobs:
            return None
        logprobs: list[dict[str, Any]] = chat_logprobs(self._names, delta.logprobs, self._top_logprobs)["content"]
        return logprobs

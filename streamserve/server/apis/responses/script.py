"""The events of one response, from `response.created` to its one terminal event.

Runs in the task of the response's run. Text is taken apart by the model's parser into pieces; a piece that belongs to
another item than the one before closes that one.
"""

from __future__ import annotations

from typing import Any

from streamserve.errors import StreamserveError
from streamserve.server.apis.openai.answers.logprobs import TokenNames, chat_logprobs
from streamserve.server.apis.openai.answers.reading import Reading
from streamserve.server.apis.responses.events import ResponseEvent, event
from streamserve.server.apis.responses.output import FunctionCallItem, MessageItem, OutputItem, ReasoningItem
from streamserve.server.apis.responses.stored_response import ResponseState
from streamserve.text.parsing.pieces import Content, Piece, Reasoning, ToolCallStart
from streamserve.types import FinishReason, TextDelta, TextLogprob


def opening_events(state: ResponseState) -> list[ResponseEvent]:
    """The events that announce a response."""
    response = state.as_object()
    return [event("response.created", response=response), event("response.in_progress", response=response)]


def failure_events(state: ResponseState, error: StreamserveError) -> list[ResponseEvent]:
    """The one terminal event of a response that failed."""
    state.finish("failed", error=error)
    return [event("response.failed", response=state.as_object())]


class WarmUpScript:
    """The script of a request that has its input computed and generates nothing: its output stays empty."""

    def __init__(self, state: ResponseState) -> None:
        self._state = state

    def opening(self) -> list[ResponseEvent]:
        return opening_events(self._state)

    def delta(self, delta: TextDelta) -> list[ResponseEvent]:
        return []

    def end(self) -> list[ResponseEvent]:
        self._state.finish("completed")
        return [event("response.completed", response=self._state.as_object())]

    def failure(self, error: StreamserveError) -> list[ResponseEvent]:
        return failure_events(self._state, error)


class ResponseScript:
    """The script of a response that is generated.

    reading       how the text is taken apart; None when all of it is the message
    top_logprobs  alternatives per token; None for no logprobs
    """

    def __init__(self, state: ResponseState, *, reading: Reading | None, top_logprobs: int | None) -> None:
        self._state = state
        self._reading = reading
        self._parser = None if reading is None else reading.new_parser()
        self._top_logprobs = top_logprobs
        self._names = TokenNames()
        self._item: OutputItem | None = None
        self._logprobs: list[TextLogprob] = []
        self._ending: FinishReason = "stop"

    def opening(self) -> list[ResponseEvent]:
        return opening_events(self._state)

    def delta(self, delta: TextDelta) -> list[ResponseEvent]:
        if delta.finish_reason is not None:
            self._ending = delta.finish_reason
        if self._top_logprobs is not None:
            self._logprobs += delta.logprobs or ()
        events: list[ResponseEvent] = []
        for piece in self._pieces(delta):
            self._add(piece, events)
        if isinstance(self._item, ReasoningItem):
            self._state.reasoning_tokens += len(delta.token_ids)
        return events

    def end(self) -> list[ResponseEvent]:
        events: list[ResponseEvent] = []
        if self._item is None:
            self._message(events)
        state = self._state
        if self._ending == "stop":
            self._close("completed", events)
            state.finish("completed")
        elif self._ending == "abort":
            self._close("incomplete", events)
            state.finish("cancelled")
        else:
            self._close("incomplete", events)
            state.finish("incomplete", reason="max_output_tokens")
        kind = "response.completed" if state.status == "completed" else "response.incomplete"
        return [*events, event(kind, response=state.as_object())]

    def failure(self, error: StreamserveError) -> list[ResponseEvent]:
        events: list[ResponseEvent] = []
        self._close("incomplete", events)
        return [*events, *failure_events(self._state, error)]

    def _pieces(self, delta: TextDelta) -> list[Piece]:
        if self._parser is None:
            return [Content(delta.text)] if delta.text or self._logprobs else []
        pieces = self._parser.push(delta.text) if delta.text else []
        return pieces if delta.finish_reason is None else [*pieces, *self._parser.finish(is_cut=delta.finish_reason != "stop")]

    def _add(self, piece: Piece, events: list[ResponseEvent]) -> None:
        match piece:
            case Content(text):
                message, logprobs = self._message(events), self._take_logprobs()
                events.append(message.add_with_logprobs(text, logprobs) if logprobs else message.add(text))
            case Reasoning(text):
                self._logprobs.clear()
                events.append(self._reasoning(events).add(text))
            case ToolCallStart(_, name, call_id):
                assert self._reading is not None
                self._logprobs.clear()
                id, index = self._state.id, len(self._state.output)
                self._switch(FunctionCallItem(id, index, name=name, call_id=call_id or self._reading.new_call_id()), events)
            case _:
                assert isinstance(self._item, FunctionCallItem), "arguments follow the start of their call"
                self._logprobs.clear()
                events.append(self._item.add(piece.json))

    def _message(self, events: list[ResponseEvent]) -> MessageItem:
        if not isinstance(self._item, MessageItem):
            self._switch(MessageItem(self._state.id, len(self._state.output)), events)
        assert isinstance(self._item, MessageItem)
        return self._item

    def _reasoning(self, events: list[ResponseEvent]) -> ReasoningItem:
        if not isinstance(self._item, ReasoningItem):
            self._switch(ReasoningItem(self._state.id, len(self._state.output)), events)
        assert isinstance(self._item, ReasoningItem)
        return self._item

    def _switch(self, item: OutputItem, events: list[ResponseEvent]) -> None:
        """Close the item before and open the next."""
        self._close("completed", events)
        events += item.open()
        self._state.output.append(item)
        self._item = item

    def _close(self, status: str, events: list[ResponseEvent]) -> None:
        if self._item is not None:
            events += self._item.close(status)

    def _take_logprobs(self) -> list[dict[str, Any]]:
        tokens, self._logprobs = self._logprobs, []
        if self._top_logprobs is None:
            return []
        logprobs: list[dict[str, Any]] = chat_logprobs(self._names, tokens, self._top_logprobs)["content"]
        return logprobs

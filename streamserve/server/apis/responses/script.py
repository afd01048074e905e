"""The events of one response, from `response.created` to its one terminal event.

Runs inside the response's producer. Text is taken apart by the model's parser into pieces; a piece that belongs to another item
than the one before closes that one.
"""

from __future__ import annotations

from typing import Any

from streamserve.errors import StreamserveError
from streamserve.server.apis.openai.logprobs import TokenNames, chat_logprobs
from streamserve.server.apis.openai.reading import Reading
from streamserve.server.apis.responses.output import FunctionCallItem, MessageItem, OutputItem, ReasoningItem, event
from streamserve.server.apis.responses.stored_response import StoredResponse
from streamserve.server.delivery.event_log import Entry
from streamserve.text.parsing.pieces import Content, Piece, Reasoning, ToolCallStart
from streamserve.types import FinishReason, TextDelta, TextLogprob


class ResponseScript:
    """See `producer.Script`.

    reading       how the text is taken apart; None when all of it is the message
    top_logprobs  alternatives per token; None for no logprobs
    """

    def __init__(self, record: StoredResponse, *, reading: Reading | None, top_logprobs: int | None) -> None:
        self._record = record
        self._reading = reading
        self._parser = None if reading is None else reading.new_parser()
        self._top_logprobs = top_logprobs
        self._names = TokenNames()
        self._item: OutputItem | None = None
        self._logprobs: list[TextLogprob] = []
        self._ending: FinishReason = "stop"

    def opening(self) -> list[Entry]:
        response = self._record.as_object()
        return [event("response.created", response=response), event("response.in_progress", response=response)]

    def delta(self, delta: TextDelta) -> list[Entry]:
        if delta.finish_reason is not None:
            self._ending = delta.finish_reason
        if self._top_logprobs is not None:
            self._logprobs += delta.logprobs or ()
        entries: list[Entry] = []
        for piece in self._pieces(delta):
            self._say(piece, entries)
        if isinstance(self._item, ReasoningItem):
            self._record.reasoning_tokens += len(delta.token_ids)
        return entries

    def end(self) -> list[Entry]:
        entries: list[Entry] = []
        if self._item is None:
            self._message(entries)
        record = self._record
        if self._ending == "stop":
            self._close("completed", entries)
            record.finish("completed")
        elif self._ending == "abort":
            self._close("incomplete", entries)
            record.finish("cancelled")
        else:
            self._close("incomplete", entries)
            record.finish("incomplete", reason="max_output_tokens")
        kind = "response.completed" if record.status == "completed" else "response.incomplete"
        return [*entries, event(kind, response=record.as_object())]

    def failure(self, error: StreamserveError) -> list[Entry]:
        entries: list[Entry] = []
        self._close("incomplete", entries)
        self._record.finish("failed", error=error)
        return [*entries, event("response.failed", response=self._record.as_object())]

    def _pieces(self, delta: TextDelta) -> list[Piece]:
        if self._parser is None:
            return [Content(delta.text)] if delta.text or self._logprobs else []
        pieces = self._parser.push(delta.text) if delta.text else []
        return pieces if delta.finish_reason is None else [*pieces, *self._parser.finish()]

    def _say(self, piece: Piece, entries: list[Entry]) -> None:
        match piece:
            case Content(text):
                message, logprobs = self._message(entries), self._take_logprobs()
                entries.append(message.add_with_logprobs(text, logprobs) if logprobs else message.add(text))
            case Reasoning(text):
                self._logprobs.clear()
                entries.append(self._thought(entries).add(text))
            case ToolCallStart(_, name):
                assert self._reading is not None
                self._logprobs.clear()
                self._switch(
                    FunctionCallItem(len(self._record.output), name=name, call_id=self._reading.new_call_id()), entries
                )
            case _:
                assert isinstance(self._item, FunctionCallItem), "arguments follow the start of their call"
                self._logprobs.clear()
                entries.append(self._item.add(piece.json))

    def _message(self, entries: list[Entry]) -> MessageItem:
        if not isinstance(self._item, MessageItem):
            self._switch(MessageItem(len(self._record.output)), entries)
        assert isinstance(self._item, MessageItem)
        return self._item

    def _thought(self, entries: list[Entry]) -> ReasoningItem:
        if not isinstance(self._item, ReasoningItem):
            self._switch(ReasoningItem(len(self._record.output)), entries)
        assert isinstance(self._item, ReasoningItem)
        return self._item

    def _switch(self, item: OutputItem, entries: list[Entry]) -> None:
        """Close the item before and open the next."""
        self._close("completed", entries)
        entries += item.open()
        self._record.output.append(item)
        self._item = item

    def _close(self, status: str, entries: list[Entry]) -> None:
        if self._item is not None:
            entries += self._item.close(status)

    def _take_logprobs(self) -> list[dict[str, Any]]:
        tokens, self._logprobs = self._logprobs, []
        if self._top_logprobs is None:
            return []
        logprobs: list[dict[str, Any]] = chat_logprobs(self._names, tokens, self._top_logprobs)["content"]
        return logprobs

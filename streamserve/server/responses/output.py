"""The output items of a response while they grow, and the events that each step of their growth makes.

Knows of an answer only the pieces it falls into: a new kind of piece gets an item class of its own. Pure data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any
from uuid import uuid4

import orjson

from streamserve.server.event_log import Entry

_TEXT = "\x00text\x00"
_ENCODED_TEXT = orjson.dumps(_TEXT)


def event(type: str, **fields: Any) -> Entry:
    """An event with these members."""
    return Entry(type, orjson.dumps(fields)[1:-1])


class OutputItem(ABC):
    """One item, open until `close`.

    index  its place in the response's output
    """

    def __init__(self, index: int) -> None:
        self.index = index

    @abstractmethod
    def open(self) -> list[Entry]:
        """The events that announce it."""

    @abstractmethod
    def close(self, status: str) -> list[Entry]:
        """The events that complete it; `status` is "completed" or "incomplete"."""

    @abstractmethod
    def as_object(self) -> dict[str, Any]:
        """The item as it stands."""


class MessageItem(OutputItem):
    """The answer's text: a message with one part."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.id = f"msg_{uuid4().hex}"
        self._status = "in_progress"
        self._has_part = False
        self._texts: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        self._place = {"item_id": self.id, "output_index": index, "content_index": 0}
        delta = orjson.dumps({**self._place, "delta": _TEXT, "logprobs": []})[1:-1]
        self._head, self._tail = delta.split(_ENCODED_TEXT)

    def open(self) -> list[Entry]:
        added = event("response.output_item.added", output_index=self.index, item=self.as_object())
        self._has_part = True
        empty = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        return [added, event("response.content_part.added", **self._place, part=empty)]

    def add(self, text: str, logprobs: list[dict[str, Any]] | None) -> Entry:
        """More text, with the log-probabilities of its tokens when those were asked for."""
        self._texts.append(text)
        if not logprobs:
            return Entry("response.output_text.delta", self._head + orjson.dumps(text) + self._tail)
        self._logprobs += logprobs
        return event("response.output_text.delta", **self._place, delta=text, logprobs=logprobs)

    def close(self, status: str) -> list[Entry]:
        self._status = status
        part = self._part()
        return [
            event("response.output_text.done", **self._place, text=part["text"], logprobs=self._logprobs),
            event("response.content_part.done", **self._place, part=part),
            event("response.output_item.done", output_index=self.index, item=self.as_object()),
        ]

    def as_object(self) -> dict[str, Any]:
        content = [self._part()] if self._has_part else []
        return {"id": self.id, "type": "message", "status": self._status, "role": "assistant", "content": content}

    def _part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": "".join(self._texts), "annotations": [], "logprobs": self._logprobs}

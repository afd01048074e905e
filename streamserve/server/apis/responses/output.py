"""The output items of a response while they grow, and the events that each step of their growth makes.

Pure data: a message, reasoning, or a call of a function; the script decides which of them a piece of the answer belongs to.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import orjson

from streamserve.server.apis.responses.events import ResponseEvent, event
from streamserve.server.apis.responses.ids import output_id
from streamserve.server.delivery.events import members

Object = dict[str, Any]


class OutputItem(ABC):
    """One item of the output: opened, grown, closed.

    response_id  of its response
    index        its place in the output
    """

    prefix: str

    def __init__(self, response_id: str, index: int) -> None:
        self.id = output_id(self.prefix, response_id, index)
        self.index = index
        self.status = "in_progress"

    def open(self) -> list[ResponseEvent]:
        """The events that announce it."""
        return [event("response.output_item.added", output_index=self.index, item=self.as_object())]

    def close(self, status: str) -> list[ResponseEvent]:
        """The events that complete it; `status` is "completed" or "incomplete"."""
        parts = self._close_parts()
        self.status = status
        return [*parts, event("response.output_item.done", output_index=self.index, item=self.as_object())]

    @abstractmethod
    def as_object(self) -> Object:
        """The item as it stands."""

    @abstractmethod
    def _close_parts(self) -> list[ResponseEvent]:
        """The events that complete what it is made of."""


class TextItem(OutputItem):
    """An item made of one part of text, which comes as events named after `text_event`.

    after_text  the members that follow the text in a delta
    """

    text_event: str
    after_text: bytes

    def __init__(self, response_id: str, index: int) -> None:
        super().__init__(response_id, index)
        self._has_part = False
        self._texts: list[str] = []
        self._place = {"item_id": self.id, "output_index": index, "content_index": 0}
        # All but the text of a delta is encoded once.
        self._before_text = members(**self._place) + b',"delta":'

    def open(self) -> list[ResponseEvent]:
        opening = super().open()
        self._has_part = True
        return [*opening, event("response.content_part.added", **self._place, part=self._part())]

    def add(self, text: str) -> ResponseEvent:
        """More text."""
        self._texts.append(text)
        return ResponseEvent(f"{self.text_event}.delta", self._before_text + orjson.dumps(text) + self.after_text)

    def _close_parts(self) -> list[ResponseEvent]:
        return [
            event(f"{self.text_event}.done", **self._place, text="".join(self._texts), **self._done_fields()),
            event("response.content_part.done", **self._place, part=self._part()),
        ]

    def _content(self) -> list[Object]:
        return [self._part()] if self._has_part else []

    def _done_fields(self) -> Object:
        return {}

    @abstractmethod
    def _part(self) -> Object:
        """The part as it stands."""


class MessageItem(TextItem):
    """A message of the model."""

    prefix = "msg"
    text_event = "response.output_text"
    after_text = b',"logprobs":[]'

    def __init__(self, response_id: str, index: int) -> None:
        super().__init__(response_id, index)
        self._logprobs: list[Object] = []

    def add_with_logprobs(self, text: str, logprobs: list[Object]) -> ResponseEvent:
        """More text, with the log-probabilities of its tokens."""
        self._texts.append(text)
        self._logprobs += logprobs
        fields = b',"logprobs":' + orjson.dumps(logprobs)
        return ResponseEvent(f"{self.text_event}.delta", self._before_text + orjson.dumps(text) + fields)

    def as_object(self) -> Object:
        return {"id": self.id, "type": "message", "status": self.status, "role": "assistant", "content": self._content()}

    def _done_fields(self) -> Object:
        return {"logprobs": self._logprobs}

    def _part(self) -> Object:
        return {"type": "output_text", "text": "".join(self._texts), "annotations": [], "logprobs": self._logprobs}


class ReasoningItem(TextItem):
    """Reasoning of the model, before its message."""

    prefix = "rs"
    text_event = "response.reasoning_text"
    after_text = b""

    def as_object(self) -> Object:
        return {"id": self.id, "type": "reasoning", "status": self.status, "summary": [], "content": self._content()}

    def _part(self) -> Object:
        return {"type": "reasoning_text", "text": "".join(self._texts)}


class FunctionCallItem(OutputItem):
    """A function that the model wants called.

    call_id  what the function's output will refer to
    """

    prefix = "fc"

    def __init__(self, response_id: str, index: int, *, name: str, call_id: str) -> None:
        super().__init__(response_id, index)
        self._name = name
        self._call_id = call_id
        self._arguments: list[str] = []
        self._place = {"item_id": self.id, "output_index": index}

    def add(self, json: str) -> ResponseEvent:
        """More of the arguments' JSON text."""
        self._arguments.append(json)
        return event("response.function_call_arguments.delta", **self._place, delta=json)

    def as_object(self) -> Object:
        return {
            "id": self.id,
            "type": "function_call",
            "status": self.status,
            "call_id": self._call_id,
            "name": self._name,
            "arguments": "".join(self._arguments),
        }

    def _close_parts(self) -> list[ResponseEvent]:
        arguments = "".join(self._arguments)
        return [event("response.function_call_arguments.done", **self._place, name=self._name, arguments=arguments)]

"""One response: what was asked, what has come of it so far, and the object that says so.

Lives on one API worker's event loop; changed only by the script that writes its events.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec
import orjson

from streamserve.errors import StreamserveError
from streamserve.server.apis.responses.items import Item, Message, as_messages
from streamserve.server.apis.responses.output import OutputItem
from streamserve.server.apis.responses.schema import ResponseRequest
from streamserve.server.delivery.producer import Producer
from streamserve.server.telemetry.request_cost import Usage
from streamserve.types import SamplingParams

IN_PROGRESS = "in_progress"


class StoredResponse:
    """See the module.

    items     this turn's input
    messages  the whole conversation up to this response, without instructions
    usage     kept up to date while it is generated; `reasoning_tokens` tells how much of its output was reasoning
    """

    def __init__(
        self,
        id: str,
        model: str,
        asked: ResponseRequest,
        params: SamplingParams,
        *,
        items: list[Item],
        messages: list[Message],
        usage: Usage,
    ) -> None:
        self.id = id
        self.items = items
        self.output: list[OutputItem] = []
        self.status = IN_PROGRESS
        self.error: StreamserveError | None = None
        self.incomplete_reason: str | None = None
        self.reasoning_tokens = 0
        self._model = model
        self._asked = asked
        self._params = params
        self._messages = messages
        self._usage = usage
        self._created_at = int(time.time())
        self._completed_at: int | None = None
        self._producer: Producer | None = None

    @property
    def producer(self) -> Producer:
        """Who generates it."""
        assert self._producer is not None, "set by whoever makes the record"
        return self._producer

    @producer.setter
    def producer(self, producer: Producer) -> None:
        self._producer = producer

    @property
    def is_ended(self) -> bool:
        return self.producer.is_ended

    @property
    def ended_at(self) -> float | None:
        return self.producer.ended_at

    @property
    def num_bytes(self) -> int:
        return self.producer.num_bytes + len(orjson.dumps(self.items))

    @property
    def is_background(self) -> bool:
        return bool(self._asked.background)

    def finish(self, status: str, *, reason: str | None = None, error: StreamserveError | None = None) -> None:
        """It is over: completed, incomplete for a `reason`, cancelled, or failed with an `error`."""
        self.status, self.incomplete_reason, self.error = status, reason, error
        self._completed_at = int(time.time()) if status == "completed" else None

    def conversation(self) -> list[Message]:
        """What a next response continues."""
        return [*self._messages, *as_messages([item.as_object() for item in self.output])]

    def as_object(self) -> dict[str, Any]:
        """The response object of the OpenAI API."""
        asked, params = self._asked, self._params
        text = asked.text.format if asked.text is not None else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created_at,
            "status": self.status,
            "background": self.is_background,
            "completed_at": self._completed_at,
            "error": None if self.error is None else {"code": "server_error", "message": self.error.message},
            "incomplete_details": None if self.incomplete_reason is None else {"reason": self.incomplete_reason},
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "model": self._model,
            "output": [item.as_object() for item in self.output],
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "prompt_cache_key": asked.prompt_cache_key,
            "reasoning": {"effort": None if asked.reasoning is None else asked.reasoning.effort, "summary": None},
            "safety_identifier": asked.safety_identifier,
            "service_tier": "default",
            "store": asked.is_stored,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"} if text is None else msgspec.to_builtins(text)},
            "tool_choice": asked.tool_choice or "auto",
            "tools": [{"parameters": None, "strict": None, **tool} for tool in asked.tools or ()],
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": params.top_p,
            "truncation": "disabled",
            "usage": None if self.status == IN_PROGRESS else _usage_object(self._usage, self.reasoning_tokens),
            "user": asked.user,
            "metadata": asked.metadata or {},
        }


def _usage_object(usage: Usage, reasoning_tokens: int) -> dict[str, Any]:
    return {
        "input_tokens": usage.prompt_tokens,
        "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": usage.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning_tokens},
        "total_tokens": usage.prompt_tokens + usage.completion_tokens,
    }

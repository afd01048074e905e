"""One response: its request, its output so far, the object that shows both; and, stored, together with the run that makes it.

Lives on one API worker's event loop; changed only by the script that makes its events.
"""

from __future__ import annotations

import time
from typing import Any, NamedTuple

import msgspec
import orjson

from streamserve.errors import StreamserveError
from streamserve.server.apis.responses.events import ResponseEvent
from streamserve.server.apis.responses.items import ChatMessage, Item, as_messages
from streamserve.server.apis.responses.output import OutputItem
from streamserve.server.apis.responses.schema import ResponseRequest
from streamserve.server.delivery.logged_run import LoggedRun
from streamserve.server.telemetry.request_cost import TokenCounts
from streamserve.types import SamplingParams

IN_PROGRESS = "in_progress"


class ResponseState:
    """A response while it is made and after.

    items       this turn's input
    messages    the whole conversation up to this response, without instructions
    usage       kept up to date while it is generated; `reasoning_tokens` counts the reasoning in its output
    created_at  seconds since the epoch
    ended_at    when it was over, by `time.monotonic`; None until then
    """

    def __init__(
        self,
        id: str,
        model: str,
        request: ResponseRequest,
        params: SamplingParams,
        *,
        items: list[Item],
        messages: list[ChatMessage],
        usage: TokenCounts,
    ) -> None:
        self.id = id
        self.items = items
        self.output: list[OutputItem] = []
        self.status = IN_PROGRESS
        self.error: StreamserveError | None = None
        self.incomplete_reason: str | None = None
        self.reasoning_tokens = 0
        self.ended_at: float | None = None
        self._model = model
        self._request = request
        self._params = params
        self._messages = messages
        self._usage = usage
        self.created_at = int(time.time())
        self._completed_at: int | None = None

    @property
    def is_background(self) -> bool:
        """Whether it goes on without a reader."""
        return bool(self._request.background)

    def finish(self, status: str, *, reason: str | None = None, error: StreamserveError | None = None) -> None:
        """It is over: completed, incomplete for a `reason`, cancelled, or failed with an `error`."""
        self.status, self.incomplete_reason, self.error = status, reason, error
        self._completed_at = int(time.time()) if status == "completed" else None
        self.ended_at = time.monotonic()

    @property
    def num_bytes(self) -> int:
        """Roughly the memory that its input and output take."""
        return len(orjson.dumps(self.all_items()))

    @property
    def text(self) -> str:
        """The text of its messages."""
        objects = [item.as_object() for item in self.output]
        return "".join(part["text"] for each in objects if each["type"] == "message" for part in each["content"])

    def all_items(self) -> list[Item]:
        """The items of its input and output."""
        return [*self.items, *(item.as_object() for item in self.output)]

    def conversation(self) -> list[ChatMessage]:
        """The messages that a next response continues."""
        return [*self._messages, *as_messages([item.as_object() for item in self.output])]

    def usage_object(self) -> dict[str, Any]:
        """The tokens so far, as the OpenAI API has them in a response."""
        usage = self._usage
        return {
            "input_tokens": usage.prompt_tokens,
            "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
            "output_tokens": usage.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        }

    def as_object(self) -> dict[str, Any]:
        """The response object of the OpenAI API."""
        request, params = self._request, self._params
        text = request.text.format if request.text is not None else None
        return {
            "id": self.id,
            "object": "response",
            "created_at": self.created_at,
            "status": self.status,
            "background": self.is_background,
            "completed_at": self._completed_at,
            "error": None if self.error is None else {"code": "server_error", "message": self.error.message},
            "incomplete_details": None if self.incomplete_reason is None else {"reason": self.incomplete_reason},
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "max_tool_calls": request.max_tool_calls,
            "model": self._model,
            "output": [item.as_object() for item in self.output],
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": request.previous_response_id,
            "prompt_cache_key": request.prompt_cache_key,
            "reasoning": {"effort": None if request.reasoning is None else request.reasoning.effort, "summary": None},
            "safety_identifier": request.safety_identifier,
            "service_tier": "default",
            "store": request.is_stored,
            "temperature": params.temperature,
            "text": {"format": {"type": "text"} if text is None else msgspec.to_builtins(text)},
            "tool_choice": request.tool_choice or "auto",
            "tools": [{"parameters": None, "strict": None, **tool} for tool in request.tools or ()],
            "top_logprobs": request.top_logprobs or 0,
            "top_p": params.top_p,
            "presence_penalty": params.presence_penalty,
            "frequency_penalty": params.frequency_penalty,
            "truncation": "disabled",
            "usage": None if self.status == IN_PROGRESS else self.usage_object(),
            "user": request.user,
            "metadata": request.metadata or {},
        }


class StoredResponse(NamedTuple):
    """A response and the run that makes it; kept in the service's store unless the request forbids it."""

    state: ResponseState
    logged: LoggedRun[ResponseEvent]

    @property
    def id(self) -> str:
        """The response's id."""
        return self.state.id

    @property
    def is_ended(self) -> bool:
        """Whether nothing more comes."""
        return self.logged.is_ended

    @property
    def ended_at(self) -> float | None:
        """When it ended, by `time.monotonic`; None while it runs."""
        return self.logged.ended_at

    @property
    def num_bytes(self) -> int:
        """Roughly the memory it takes."""
        return self.logged.num_bytes + self.state.num_bytes

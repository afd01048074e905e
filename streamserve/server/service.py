"""The state that the endpoints of one API worker share: settings, phase, running requests and, once loaded, the model.

Lives on the worker's event loop. Endpoints get it by injection; nothing of it is global.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import anyio
from anyio.abc import TaskGroup

from streamserve.errors import ConfigError, ModelNotFound, StreamserveError, Unavailable
from streamserve.frontend import Frontend
from streamserve.server.apis.openai.parameters import Limits
from streamserve.server.apis.openai.request_templates import RequestTemplates
from streamserve.server.apis.responses.stored_response import StoredResponse
from streamserve.server.config import ServerConfig
from streamserve.server.delivery.active_requests import ActiveRequests, answer_ids
from streamserve.server.delivery.flusher import Flusher
from streamserve.server.delivery.producer import Producer
from streamserve.server.delivery.retention import TtlStore
from streamserve.server.lifecycle import Lifecycle, Phase
from streamserve.server.siblings.control import Method
from streamserve.server.siblings.siblings import Siblings
from streamserve.server.telemetry.metrics import Metrics
from streamserve.server.telemetry.tracing import Tracer
from streamserve.server.ws.open_sockets import DRAINING, FAILED, Sockets
from streamserve.text.chat_template import ChatTemplate
from streamserve.text.parsing.dialect import Dialect
from streamserve.text.parsing.registry import dialect_of
from streamserve.types import EngineStats

MAX_RESPONSES = 4096
MAX_RESPONSE_BYTES = 256 << 20
"""Memory that stored responses may hold."""
MAX_RESUMABLE = 4096
MAX_RESUMABLE_BYTES = 256 << 20
"""Memory that ended streams may hold for clients that resume them."""

HEARTBEAT_LIMIT_S = 30.0
"""Seconds without a heartbeat after which the engine is not ready."""


class Service:
    """Shared state of one API worker.

    tracer    makes a span of every request; None for no traces
    siblings  the other API workers; None when there are none
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        metrics: Metrics | None = None,
        tracer: Tracer | None = None,
        siblings: Siblings | None = None,
    ) -> None:
        self.config = config
        self.lifecycle = Lifecycle()
        self.metrics = metrics or Metrics(config.model_names[0])
        self.active_requests = ActiveRequests(self.metrics.requests.set)
        self.flusher = Flusher()
        self.tracer = tracer
        self.started_at = int(time.time())
        self.sockets = Sockets()
        self.request_templates = RequestTemplates()
        self.resumable: TtlStore[Producer] = TtlStore(
            ttl_s=config.resume_s, max_items=MAX_RESUMABLE, max_bytes=MAX_RESUMABLE_BYTES
        )
        self.responses: TtlStore[StoredResponse] = TtlStore(
            ttl_s=config.response_ttl_s, max_items=MAX_RESPONSES, max_bytes=MAX_RESPONSE_BYTES
        )
        self._tasks: TaskGroup | None = None
        self.siblings = siblings
        self._frontend: Frontend | None = None
        self._limits: Limits | None = None

    def attach(self, frontend: Frontend, defaults: Mapping[str, Any]) -> None:
        """Take requests from now on, for the model that `frontend` serves.

        defaults  sampling parameters, by `SamplingParams` name, for requests that leave them out

        Raises `ConfigError` when the configuration requires what this model can't do.
        """
        self._require_parsers(frontend.chat_template)
        self._frontend = frontend
        self._limits = Limits(
            defaults=defaults,
            max_logprobs=self.config.max_logprobs,
            max_model_len=frontend.info.max_model_len,
            priority_scheduling=self.config.priority_scheduling,
        )
        self.lifecycle.serve()

    def dialect(self, template: str) -> Dialect:
        """The dialect of answers to prompts of a chat template, by the template's source. Raises `ConfigError`."""
        return dialect_of(
            template,
            tool_call_parser=self.config.tool_call_parser,
            reasoning_parser=self.config.reasoning_parser,
        )

    def _require_parsers(self, template: ChatTemplate | None) -> None:
        source = "" if template is None else template.source
        if self.dialect(source).tool_calls is None and self.config.enable_auto_tool_choice:
            raise ConfigError("--enable-auto-tool-choice: this model's chat template knows no tools; say --tool-call-parser")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the producers passed to `start`; cancels them at the end of the block."""
        async with anyio.create_task_group() as tasks:
            self._tasks = tasks
            yield
            tasks.cancel_scope.cancel()

    async def start(self, producer: Producer) -> None:
        """Run a producer in the background. Returns once its request is admitted; raises the refusal."""
        if self._tasks is None:
            raise Unavailable("the server is starting")
        await self._tasks.start(producer.run)
        if producer.is_resumable:
            self.resumable.put(producer.request_id, producer)

    def producer_of(self, response_id: str) -> Producer | None:
        """The producer of a response whose events are kept here, by the response's id with or without its prefix."""
        for answer_id in answer_ids(response_id):
            if (producer := self.resumable.get(answer_id)) is not None:
                return producer
            if (record := self.responses.get(answer_id)) is not None:
                return record.producer
        return None

    @property
    def frontend(self) -> Frontend:
        """Raises `Unavailable` unless requests are taken."""
        self.lifecycle.require_ready()
        if self._frontend is None:
            raise Unavailable("the model is still loading")
        return self._frontend

    @property
    def limits(self) -> Limits:
        """Raises `Unavailable` unless requests are taken."""
        self.lifecycle.require_ready()
        if self._limits is None:
            raise Unavailable("the model is still loading")
        return self._limits

    def resolve_model(self, name: str | None) -> str:
        """The served name for a request's `model`; the first one for an empty name. Raises `ModelNotFound`."""
        names = self.config.model_names
        if not name:
            return names[0]
        if name not in names:
            raise ModelNotFound(f"the model {name!r} does not exist here; /v1/models lists what is served", param="model")
        return name

    async def engine_stats(self) -> EngineStats | None:
        """The engine's statistics; None while no engine answers."""
        if self._frontend is None or self.lifecycle.phase is Phase.DEAD:
            return None
        try:
            return await self._frontend.engine.stats()
        except StreamserveError:
            return None

    async def require_healthy(self) -> None:
        """Raises `Unavailable` unless requests are taken and the engine's loop runs."""
        self.lifecycle.require_ready()
        stats = await self.engine_stats()
        if stats is None:
            raise Unavailable("the engine does not answer")
        if stats.heartbeat_s > HEARTBEAT_LIMIT_S:
            raise Unavailable(f"the engine's loop has not turned for {stats.heartbeat_s:.0f} s")

    async def cancel(self, request_id: str) -> bool:
        """Cancel a request, whichever worker answers it; False when it is not running."""
        if self.active_requests.abort(request_id):
            return True
        return self.siblings is not None and await self.siblings.cancel(request_id)

    async def find_sibling(self, response_id: str) -> str | None:
        """The internal socket of another API worker that keeps a response or the events of a stream; None when none does."""
        return None if self.siblings is None else await self.siblings.find(response_id)

    async def find_elsewhere(self, response_id: str) -> str | None:
        """As `find_sibling`; None for a response that this worker keeps, too."""
        return None if self.responses.get(response_id) else await self.find_sibling(response_id)

    def on_call(self, method: Method, id: str) -> bool:
        """Execute a call of a sibling on this worker; False when it does not have the request."""
        return self.active_requests.abort(id) if method == "cancel" else self.producer_of(id) is not None

    async def drain(self, timeout_s: float) -> None:
        """Take no new requests, let running ones finish, and end the rest with an error event after `timeout_s`."""
        self.lifecycle.drain()
        self.sockets.leave(DRAINING)
        for producer in self.resumable.running():
            producer.stop_waiting()
        with anyio.move_on_after(timeout_s):
            await self.active_requests.wait_idle()
        self.active_requests.fail_all(Unavailable("the server is shutting down"))
        await self._wait_idle(2.0)

    async def die(self, timeout_s: float) -> None:
        """The engine is gone and its streams have ended: wait at most `timeout_s` until their last bytes are sent."""
        self.lifecycle.die()
        self.sockets.leave(FAILED)
        await self._wait_idle(timeout_s)

    async def _wait_idle(self, timeout_s: float) -> None:
        with anyio.move_on_after(timeout_s):
            await self.active_requests.wait_idle()
            await self.sockets.wait_idle()

"""The state that the endpoints of one API worker share: settings, phase, running requests and, once loaded, the model.

Lives on the worker's event loop. Endpoints get it by injection; nothing of it is global.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Protocol

import anyio

from streamserve.errors import ConfigError, ModelNotFound, StreamserveError, Unavailable, quoted
from streamserve.frontend import Frontend
from streamserve.server.config import RequestLimits, ServerConfig
from streamserve.server.delivery.asgi import Headers, Timeouts
from streamserve.server.delivery.delivery import Delivery
from streamserve.server.delivery.events import SocketEvent
from streamserve.server.delivery.identity import Identity
from streamserve.server.delivery.logged_run import LoggedRun
from streamserve.server.delivery.retention import Expiring, TtlStore
from streamserve.server.delivery.run import Admit, Run
from streamserve.server.http.access.api_keys import ApiKeys
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.http.bodies.large_work import LargeWork
from streamserve.server.http.patience import patience_s
from streamserve.server.http.rate_limit_headers import rate_limit_headers
from streamserve.server.lifecycle import Lifecycle, Phase
from streamserve.server.open_sockets import DRAINING, FAILED, RESTARTING, OpenSockets
from streamserve.server.request_templates import RequestTemplates
from streamserve.server.siblings.control import Method
from streamserve.server.siblings.siblings import Siblings
from streamserve.server.telemetry.metrics import Metrics
from streamserve.server.telemetry.request_cost import TokenCounts
from streamserve.server.telemetry.request_log import log_request
from streamserve.server.telemetry.tracing import Tracer
from streamserve.text.chat_template import reserved
from streamserve.text.parsing.dialects.dialect import Dialect
from streamserve.text.parsing.dialects.registry import dialect_of
from streamserve.text.preparation import PreparedPrompt
from streamserve.types import EngineSnapshot, EngineStats, Tenant

MAX_STORED = 4096
MAX_STORED_BYTES = 256 << 20
"""Memory that stored answers may hold."""

RETIRE_QUIET_S = 1.0
"""Seconds for which a socket must be silent to be closed by a worker that is replaced."""

HEARTBEAT_LIMIT_S = 30.0
"""Seconds without a heartbeat after which the engine is not ready."""


class StoredAnswer(Expiring, Protocol):
    """An answer that clients come back to by its id."""

    @property
    def logged(self) -> LoggedRun[SocketEvent]:
        """The run that makes it."""
        ...


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
        self.api_keys = ApiKeys(config.keys)
        self.metrics = metrics or Metrics(config.model_names[0])
        self.delivery = Delivery(
            self.metrics,
            timeouts=Timeouts(keepalive_s=config.keepalive_s, send_timeout_s=config.send_timeout_s),
            resume_s=config.resume_s,
        )
        self.tracer = tracer
        self.started_at = int(time.time())
        self.sockets = OpenSockets()
        self.request_templates = RequestTemplates()
        self.stored: TtlStore[OwnedId, StoredAnswer] = TtlStore(
            ttl_s=config.response_ttl_s, max_items=MAX_STORED, max_bytes=MAX_STORED_BYTES
        )
        self.siblings = siblings
        self.large_work = LargeWork()
        self._frontend: Frontend | None = None
        self._limits: RequestLimits | None = None

    def attach(self, frontend: Frontend, defaults: Mapping[str, Any]) -> None:
        """Take requests from now on, for the model that `frontend` serves.

        defaults  sampling parameters, by `SamplingParams` name, for requests that leave them out

        Raises `ConfigError` when the configuration requires what this model can't do.
        """
        self._require_parsers(frontend)
        if taken := reserved(self.config.default_chat_template_kwargs):
            raise ConfigError(f"--default-chat-template-kwargs: a conversation sets {', '.join(taken)} by itself")
        self._frontend = frontend
        self._limits = RequestLimits(
            defaults=defaults,
            max_logprobs=self.config.max_logprobs,
            max_model_len=frontend.info.max_model_len,
            vocab_size=frontend.info.vocab_size,
            priority_scheduling=self.config.priority_scheduling,
        )
        self.lifecycle.serve()

    def dialect(self, template: str) -> Dialect:
        """The dialect of answers to prompts of a chat template, by its source. Raises as `frontend`, or `ConfigError`."""
        return self._dialect(self.frontend, template)

    def _dialect(self, frontend: Frontend, template: str) -> Dialect:
        return dialect_of(
            template,
            response_template=frontend.tokenizer.response_template,
            tool_call_parser=self.config.tool_call_parser,
            reasoning_parser=self.config.reasoning_parser,
        )

    def _require_parsers(self, frontend: Frontend) -> None:
        template = frontend.tool_template
        source = "" if template is None else template.source
        if self._dialect(frontend, source).tool_calls is None and self.config.enable_auto_tool_choice:
            raise ConfigError("--enable-auto-tool-choice: this model's chat template knows no tools; say --tool-call-parser")

    def new_run(self, identity: Identity, model: str, prompts: Sequence[PreparedPrompt], *, admit: Admit | None = None) -> Run:
        """The run of prompts that all have the same parameters; its request counts in the metrics from now on.

        model  the served name that the request means
        admit  admits the prompts, where that takes more than `Frontend.open`
        """
        id = identity.answer_id
        params, max_tokens = prompts[0].params, [prompt.specs[0].max_tokens for prompt in prompts]
        self.metrics.request_n.observe(params.n)
        for limit in max_tokens:
            self.metrics.request_max_tokens.observe(limit)
        trace = None if self.tracer is None else self.tracer.begin(id, model, params, max_tokens[0])
        usage = TokenCounts(sum(len(prompt.prompt_token_ids) for prompt in prompts))
        if self.config.log_requests:
            log_request(id, params, num_prompts=len(prompts), num_prompt_tokens=usage.prompt_tokens, max_tokens=max_tokens[0])
        return self.delivery.new_run(
            identity,
            admit or partial(self.frontend.open, prompts, patience_s=identity.patience_s),
            usage,
            num_prompts=len(prompts),
            n=params.n,
            trace=trace,
            admitted_headers=partial(self.limit_headers, identity.tenant),
        )

    def patience_s(self, headers: Mapping[str, str], *, is_stream: bool = False) -> float | None:
        """Seconds that the client of a request waits for its answer, by its headers; None where it does not say."""
        return patience_s(headers, silence_s=self.config.keepalive_s if is_stream else None)

    def require_room(self, tenant: Tenant) -> None:
        """Raise `QueueFull` where every request of a tenant is refused now, before anything is done for one."""
        if self._frontend is not None and (refusal := self._frontend.engine.refusal(tenant)) is not None:
            raise refusal

    def limit_headers(self, tenant: Tenant) -> Headers:
        """What a tenant may still use; nothing where it has no limits."""
        return [] if self._frontend is None else rate_limit_headers(self._frontend.engine.quotas(tenant))

    def cache_salt(self, tenant: Tenant, salt: str | None) -> str:
        """What a request's cached prefixes are kept under, given its own `cache_salt`."""
        return f"{tenant.name}/{salt or ''}" if self.config.prefix_cache_per_key else salt or ""

    def find(self, id: OwnedId) -> LoggedRun[SocketEvent] | None:
        """The run whose events are kept here, by its answer's id or its request's own."""
        for answer_id in self.delivery.answer_ids(id):
            if (logged := self.delivery.resumable.get(answer_id)) is not None:
                return logged
            if (stored := self.stored.get(answer_id)) is not None:
                return stored.logged
        return None

    @property
    def frontend(self) -> Frontend:
        """Raises `Unavailable` unless requests are taken."""
        self.lifecycle.require_ready()
        if self._frontend is None:
            raise Unavailable("the model is still loading")
        return self._frontend

    @property
    def limits(self) -> RequestLimits:
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
            raise ModelNotFound(f"the model {quoted(name)} does not exist here; /v1/models lists what is served", param="model")
        return name

    async def engine_snapshots(self) -> list[EngineSnapshot]:
        """What is known of each engine, by number; nothing while the model is loading."""
        return [] if self._frontend is None else await self._frontend.engine.snapshots()

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
            raise Unavailable(f"the engine's step loop has not run for {stats.heartbeat_s:.0f} s")

    async def cancel(self, request_id: OwnedId) -> bool:
        """Cancel a request, whichever worker answers it; False when it is not running."""
        if self.delivery.abort(request_id):
            return True
        return self.siblings is not None and await self.siblings.command("cancel", request_id)

    async def answer_now(self, request_id: OwnedId) -> bool:
        """End the reasoning of a request, whichever worker answers it; False when it is not running."""
        if self.delivery.answer_now(request_id):
            return True
        return self.siblings is not None and await self.siblings.command("answer", request_id)

    async def find_sibling(self, response_id: OwnedId) -> str | None:
        """The internal socket of another API worker that keeps a response or the events of a stream; None when none does."""
        return None if self.siblings is None else await self.siblings.find(response_id)

    async def find_elsewhere(self, response_id: OwnedId) -> str | None:
        """As `find_sibling`; None for a response that this worker keeps, too."""
        return None if self.stored.get(response_id) else await self.find_sibling(response_id)

    def on_call(self, method: Method, id: OwnedId) -> bool:
        """Execute a call of a sibling on this worker; False when it does not have the request."""
        match method:
            case "cancel":
                return self.delivery.abort(id)
            case "answer":
                return self.delivery.answer_now(id)
            case "find":
                return self.find(id) is not None

    async def drain(self, timeout_s: float) -> None:
        """Take no new requests, let running ones finish, and end the rest with an error event after `timeout_s`."""
        self.lifecycle.drain()
        self.sockets.leave(DRAINING)
        await self.delivery.drain(timeout_s)
        await self._wait_idle(2.0)

    def retire(self) -> None:
        """Another worker takes this one's place: close sockets that are silent. All else is answered as ever."""
        self.sockets.leave(RESTARTING, quiet_s=RETIRE_QUIET_S)

    @property
    def is_needed(self) -> bool:
        """Whether something is being answered here, or a stream is kept for a client that may resume it."""
        return bool(
            len(self.delivery.active_requests)
            or self.delivery.resumable.num_kept()
            or self.stored.num_recent(self.config.resume_s)
        )

    async def die(self, timeout_s: float) -> None:
        """The engine is gone and its streams have ended: wait at most `timeout_s` until their last bytes are sent."""
        self.lifecycle.die()
        self.sockets.leave(FAILED)
        await self._wait_idle(timeout_s)

    async def _wait_idle(self, timeout_s: float) -> None:
        with anyio.move_on_after(timeout_s):
            await self.delivery.active_requests.wait_idle()
            await self.sockets.wait_idle()

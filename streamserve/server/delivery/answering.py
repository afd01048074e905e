"""From a checked request to the ASGI app that answers it; the same for completions and chat, over HTTP and over WebSockets.

Runs on one API worker's event loop. The endpoints say what is asked, this says how an answer comes about: format, preambles,
streamed or whole.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any
from uuid import uuid4

import msgspec

from streamserve.errors import InvalidParameter
from streamserve.server.apis.openai.frames import ChoicePreamble, Frames, StreamFormat
from streamserve.server.apis.openai.logprobs import TokenNames
from streamserve.server.apis.openai.parameter_names import naming_parameters
from streamserve.server.apis.openai.reading import Reading
from streamserve.server.apis.openai.results import Result
from streamserve.server.apis.openai.schemas import GenerationRequest
from streamserve.server.delivery.answer import Answer, AnswerLimits, Generation
from streamserve.server.delivery.sse import EventStream
from streamserve.server.delivery.whole_answer import WholeAnswer
from streamserve.server.service import Service
from streamserve.server.telemetry.accounting import Trace
from streamserve.server.telemetry.request_cost import Usage
from streamserve.text.preparation import PreparedPrompt
from streamserve.types import SamplingParams, TextDelta

MAX_CHOICES = 4096
"""Prompts times n of one request."""

_SAFE_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


class Identity(msgspec.Struct, frozen=True):
    """What a request is called: by the answer's `id`, and by the X-Request-Id header."""

    answer_id: str
    header_id: str


def identify(service: Service, asked: GenerationRequest, prefix: str, header: str = "") -> Identity:
    """The request's ids: its own `request_id`, else the client's X-Request-Id `header`, else a random one."""
    header = header if is_safe_id(header) else ""
    if asked.request_id is not None:
        return Identity(f"{prefix}-{asked.request_id}", header or f"{prefix}-{asked.request_id}")
    answer_id = f"{prefix}-{header}"
    if not header or answer_id in service.active_requests:
        # A gateway may stamp several requests alike; only an id given in the body must be unique.
        answer_id = f"{prefix}-{uuid4().hex}"
    return Identity(answer_id, header or answer_id)


def is_safe_id(text: str) -> bool:
    """Whether a client's id may stand in headers and logs as it came."""
    return _SAFE_ID.fullmatch(text) is not None


class Plan(msgspec.Struct, kw_only=True):
    """All that is known of a request once it has been checked and tokenised.

    logprobs       alternatives per token in the answer; None for no logprobs
    is_score_only  only the prompt was asked for: what is sampled is left out
    reading        how a message is read out of the text; None when the text is all there is
    names          what the request calls parameters that are refused under another name (`naming_parameters`)
    """

    identity: Identity
    model: str
    asked: GenerationRequest
    ignored: list[str]
    params: SamplingParams
    prompts: list[PreparedPrompt]
    preambles: list[ChoicePreamble]
    logprobs: int | None
    is_score_only: bool = False
    reading: Reading | None = None
    names: Mapping[str, str] = {}


def answer(service: Service, plan: Plan, frames: type[Frames], result: type[Result]) -> Answer:
    """The ASGI app that admits the request and writes its answer."""
    asked, params = plan.asked, plan.params
    usage = new_usage(plan)
    format = stream_format(service, plan)
    preambles = choice_preambles(plan)
    options: dict[str, Any] = {
        "num_prompts": len(plan.prompts),
        "n": params.n,
        "active_requests": service.active_requests,
        "metrics": service.metrics,
        "limits": AnswerLimits(service.config.keepalive_s, service.config.send_timeout_s),
        "headers": answer_headers(plan),
        "trace": begin_trace(service, plan),
    }
    open = opener(service, plan)
    identity = plan.identity.answer_id
    if asked.stream:
        return EventStream(frames(format, preambles, usage), service.flusher, identity, open, usage, **options)
    has_prompt_logprobs = asked.prompt_logprobs is not None
    return WholeAnswer(result(format, preambles, usage, prompt_logprobs=has_prompt_logprobs), identity, open, usage, **options)


def opener(service: Service, plan: Plan) -> Callable[[], Awaitable[Generation]]:
    """What admits the request's sequences when it is called; the request counts from now on."""
    service.metrics.request_n.observe(plan.params.n)
    for prompt in plan.prompts:
        service.metrics.request_max_tokens.observe(prompt.specs[0].max_tokens)
    frontend = service.frontend

    async def open() -> Generation:
        with naming_parameters(plan.names):
            generation: Generation = await frontend.open(plan.prompts)
        return PromptOnly(generation) if plan.is_score_only else generation

    return open


def begin_trace(service: Service, plan: Plan) -> Trace | None:
    """The request's trace; None unless traces are wanted."""
    if service.tracer is None:
        return None
    return service.tracer.begin(plan.identity.answer_id, plan.model, plan.params, plan.prompts[0].specs[0].max_tokens)


def new_usage(plan: Plan) -> Usage:
    """The request's tokens so far: its prompts."""
    return Usage(sum(len(prompt.prompt_token_ids) for prompt in plan.prompts))


def choice_preambles(plan: Plan) -> list[ChoicePreamble]:
    """What the first event of each choice tells."""
    return [preamble for preamble in plan.preambles for _ in range(plan.params.n)]


def stream_format(service: Service, plan: Plan) -> StreamFormat:
    """How the events of the answer look."""
    asked = plan.asked
    options = asked.stream_options
    as_token_ids = asked.return_tokens_as_token_ids
    if as_token_ids is None:
        as_token_ids = service.config.return_tokens_as_token_ids
    continuous = options is not None and bool(options.continuous_usage_stats)
    return StreamFormat(
        id=plan.identity.answer_id,
        created=int(time.time()),
        model=plan.model,
        names=TokenNames(as_token_ids=as_token_ids),
        logprobs=plan.logprobs,
        include_usage=options is not None and bool(options.include_usage),
        continuous_usage=continuous and options is not None and bool(options.include_usage),
        token_ids=bool(asked.return_token_ids),
        reading=plan.reading,
    )


def answer_headers(plan: Plan) -> list[tuple[bytes, bytes]]:
    """Headers of every answer: its id, and a warning that names unknown parameters."""
    headers = [(b"x-request-id", plan.identity.header_id.encode())]
    if plan.ignored:
        headers.append((b"warning", warning(plan.ignored)))
    return headers


def warning(ignored: Sequence[str]) -> bytes:
    """A Warning header (RFC 7234, 5.5) that names parameters nobody here knows, cut down to what a header may hold."""
    names = ", ".join(_UNSAFE.sub("?", name)[:64] for name in ignored[:16])
    return f'299 streamserve "unknown parameters ignored: {names}"'.encode()


def require_choices(num_prompts: int, n: int) -> None:
    if num_prompts * n > MAX_CHOICES:
        raise InvalidParameter("prompt", f"{num_prompts} prompts times n={n} are more than {MAX_CHOICES} choices")


class PromptOnly:
    """A generation of which only what concerns its prompts is passed on."""

    def __init__(self, generation: Generation) -> None:
        self._generation = generation

    def __enter__(self) -> PromptOnly:
        self._generation.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._generation.__exit__(*error)

    def __aiter__(self) -> PromptOnly:
        return self

    async def __anext__(self) -> TextDelta:
        return _without_output(await self._generation.__anext__())

    def take_nowait(self) -> TextDelta | None:
        delta = self._generation.take_nowait()
        return None if delta is None else _without_output(delta)

    def listen(self, ready: Callable[[], None]) -> None:
        self._generation.listen(ready)

    def abort(self) -> None:
        self._generation.abort()


def _without_output(delta: TextDelta) -> TextDelta:
    return msgspec.structs.replace(delta, text="", token_ids=[], logprobs=None, stop_reason=None)

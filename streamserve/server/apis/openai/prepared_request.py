"""From a checked request to what answers it; the same for completions and chats, over HTTP and over WebSockets.

Runs on one API worker's event loop. An endpoint prepares a request, this makes its run, its script and its writer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import msgspec
from litestar import Request

from streamserve.errors import InvalidParameter
from streamserve.server.apis.openai.answers.collectors import AnswerCollector
from streamserve.server.apis.openai.answers.events import Event, Failure
from streamserve.server.apis.openai.answers.logprobs import TokenNames
from streamserve.server.apis.openai.answers.reading import Reading
from streamserve.server.apis.openai.answers.script import ChoicePreamble, ChunkScript, StreamFormat
from streamserve.server.apis.openai.requests.schemas import GenerationRequest
from streamserve.server.delivery.event_ids import RESUME, asks_to_resume
from streamserve.server.delivery.event_stream import EventStream
from streamserve.server.delivery.identity import Identity, answer_headers, identify
from streamserve.server.delivery.log_stream import LogStream
from streamserve.server.delivery.logged_run import LoggedRun
from streamserve.server.delivery.run import DeltaSource, Run
from streamserve.server.delivery.whole_answer import WholeAnswer
from streamserve.server.http.errors import error_body
from streamserve.server.http.parameter_names import naming_parameters
from streamserve.server.service import Service
from streamserve.text.preparation import PreparedPrompt
from streamserve.types import SamplingParams, Tenant, TextDelta

_NO_HEADERS: Mapping[str, str] = {}

MAX_CHOICES = 1024
"""Prompts times n of one request: they are admitted together, which takes the event loop some ten microseconds each."""


class PreparedRequest(msgspec.Struct, kw_only=True):
    """A request that has been checked and tokenised, and not admitted.

    ignored        names of unknown fields
    logprobs       alternatives per token in the answer; None for no logprobs
    is_score_only  only the prompt was requested: what is sampled is left out
    reading        how a message is read out of the text; None when the text is all there is
    names          what the request calls parameters that are refused under another name (`naming_parameters`)
    """

    identity: Identity
    model: str
    request: GenerationRequest
    ignored: list[str]
    params: SamplingParams
    prompts: list[PreparedPrompt]
    preambles: list[ChoicePreamble]
    logprobs: int | None
    is_score_only: bool = False
    reading: Reading | None = None
    names: Mapping[str, str] = {}

    def choice_preambles(self) -> list[ChoicePreamble]:
        """The preamble of each choice."""
        return [preamble for preamble in self.preambles for _ in range(self.params.n)]


def is_resumable(body: GenerationRequest, request: Request[Any, Any, Any]) -> bool:
    """Whether the client wants to go on with the stream after a dropped connection: by a field, else by a header.

    Raises `InvalidParameter`.
    """
    by_header = asks_to_resume(request.headers.get(RESUME, ""))
    return by_header if body.resumable is None else body.resumable


def answer(
    service: Service,
    prepared: PreparedRequest,
    script: type[ChunkScript],
    collector_type: type[AnswerCollector],
    *,
    is_resumable: bool,
) -> EventStream | LogStream[Any] | WholeAnswer:
    """The ASGI app that admits the request and writes its answer, streamed or whole."""
    headers = answer_headers(prepared.identity.header_id, prepared.ignored)
    if prepared.request.stream and is_resumable:
        return service.delivery.log_stream(logged(service, prepared, script, is_resumable=True), headers, is_new=True)
    run = new_run(service, prepared)
    usage = run.account.usage
    format = stream_format(service, prepared)
    preambles = prepared.choice_preambles()
    if prepared.request.stream:
        return service.delivery.event_stream(run, script(format, preambles, usage), headers)
    has_prompt_logprobs = prepared.request.prompt_logprobs is not None
    collector = collector_type(format, preambles, usage, prompt_logprobs=has_prompt_logprobs)
    return service.delivery.whole_answer(run, collector, error_body, headers)


def logged(service: Service, prepared: PreparedRequest, script: type[ChunkScript], *, is_resumable: bool) -> LoggedRun[Event]:
    """The run that answers the request through a log."""
    run = new_run(service, prepared)
    return LoggedRun(
        run,
        script(stream_format(service, prepared), prepared.choice_preambles(), run.account.usage),
        gap_event=Failure,
        unread_s=service.delivery.resume_s if is_resumable else 0.0,
    )


def at_most(prepared: PreparedRequest, max_tokens: int) -> PreparedRequest:
    """The same request, of which no choice has more than `max_tokens`."""
    prompts = [
        replace(
            prompt, specs=[msgspec.structs.replace(spec, max_tokens=min(spec.max_tokens, max_tokens)) for spec in prompt.specs]
        )
        for prompt in prepared.prompts
    ]
    return msgspec.structs.replace(prepared, prompts=prompts)


def reporting_progress(prepared: PreparedRequest) -> PreparedRequest:
    """The same request, of which the first choice of each prompt reports how far it is before its first token."""
    prompts = [
        replace(prompt, specs=[msgspec.structs.replace(prompt.specs[0], reports_progress=True), *prompt.specs[1:]])
        for prompt in prepared.prompts
    ]
    return msgspec.structs.replace(prepared, prompts=prompts)


def prompt_only(prepared: PreparedRequest) -> PreparedRequest:
    """The same request, of which only the prompt is computed; the one token that is sampled is left out of the answer."""
    return msgspec.structs.replace(at_most(prepared, 1), is_score_only=True)


def new_run(service: Service, prepared: PreparedRequest) -> Run:
    """The run that answers the request; the request counts in the metrics from now on."""
    frontend = service.frontend
    if prepared.request.stream_options is not None and prepared.request.stream_options.include_progress:
        prepared = reporting_progress(prepared)

    async def admit() -> DeltaSource:
        with naming_parameters(prepared.names):
            generation: DeltaSource = await frontend.open(prepared.prompts, patience_s=prepared.identity.patience_s)
        return PromptOnly(generation) if prepared.is_score_only else generation

    return service.new_run(prepared.identity, prepared.model, prepared.prompts, admit=admit)


def stream_format(service: Service, prepared: PreparedRequest) -> StreamFormat:
    """How the events of the answer look."""
    request = prepared.request
    options = request.stream_options
    as_token_ids = request.return_tokens_as_token_ids
    if as_token_ids is None:
        as_token_ids = service.config.return_tokens_as_token_ids
    include_usage = options is not None and bool(options.include_usage)
    return StreamFormat(
        id=prepared.identity.answer_id,
        created=int(time.time()),
        model=prepared.model,
        names=TokenNames(as_token_ids=as_token_ids),
        logprobs=prepared.logprobs,
        include_usage=include_usage,
        continuous_usage=include_usage and options is not None and bool(options.continuous_usage_stats),
        token_ids=bool(request.return_token_ids),
        hidden_ids=service.frontend.tokenizer.special_ids if prepared.params.skip_special_tokens else frozenset(),
        reading=prepared.reading,
        partial_json=options is not None and bool(options.include_partial_json),
    )


def identity_of(
    service: Service, request: GenerationRequest, prefix: str, tenant: Tenant, headers: Mapping[str, str] = _NO_HEADERS
) -> Identity:
    """What a tenant's request is called, and how long it waits for the answer."""
    return identify(
        prefix,
        request.request_id,
        headers.get("x-request-id", ""),
        tenant=tenant,
        taken=service.delivery.active_requests,
        patience_s=service.patience_s(headers, is_stream=bool(request.stream)),
    )


def require_choices(num_prompts: int, n: int) -> None:
    """Raises `InvalidParameter` for more than `MAX_CHOICES` choices."""
    if num_prompts * n > MAX_CHOICES:
        raise InvalidParameter("prompt", f"{num_prompts} prompts times n={n} are more than {MAX_CHOICES} choices")


class PromptOnly:
    """A generation of which only what concerns its prompts is passed on."""

    def __init__(self, generation: DeltaSource) -> None:
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

    def end_reasoning(self) -> None:
        self._generation.end_reasoning()


def _without_output(delta: TextDelta) -> TextDelta:
    return msgspec.structs.replace(delta, text="", token_ids=[], logprobs=None, stop_reason=None)

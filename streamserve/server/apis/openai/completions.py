"""POST /v1/completions."""

from __future__ import annotations

from functools import partial
from typing import Any

from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from streamserve.errors import InvalidParameter
from streamserve.frontend import Frontend
from streamserve.server.apis.openai.answers.collectors import CompletionCollector
from streamserve.server.apis.openai.answers.script import ChoicePreamble, CompletionScript
from streamserve.server.apis.openai.prepared_request import (
    PreparedRequest,
    answer,
    identity_of,
    is_resumable,
    require_choices,
)
from streamserve.server.apis.openai.requests.parameter_names import completion_names
from streamserve.server.apis.openai.requests.parameters import for_completion
from streamserve.server.apis.openai.requests.schemas import CompletionRequest, PromptInput
from streamserve.server.delivery.identity import Identity
from streamserve.server.early_refusal import ADMITS
from streamserve.server.http.access.auth import tenant_of
from streamserve.server.http.bodies.json_body import TokenIds
from streamserve.server.http.bodies.request_body import Body, Decoded, convert, read
from streamserve.server.http.parameter_names import naming_parameters
from streamserve.server.resumption import continuation
from streamserve.server.service import Service
from streamserve.text.preparation import PreparedPrompt
from streamserve.types import TextLogprob

COMPLETION_PREFIX = "cmpl-"
"""What ids of completions begin with."""


@post("/v1/completions", status_code=200, opt=ADMITS)
async def create_completion(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    """Continue one or several prompts."""
    if (continued := await continuation(request, service)) is not None:
        return continued
    body = await read(request, service.large_work)
    return await answer_completion(service, body, request)


async def answer_completion(service: Service, body: Body, request: Request[Any, Any, Any]) -> ASGIApp:
    """The answer to the body of a request."""
    decoded = await convert(body, CompletionRequest)
    identity = identity_of(service, decoded.request, COMPLETION_PREFIX, tenant_of(request.scope), request.headers)
    resumable = is_resumable(decoded.request, request)
    prepared = await prepare_completion(service, decoded, identity)
    return answer(service, prepared, CompletionScript, CompletionCollector, is_resumable=resumable)


async def prepare_completion(service: Service, decoded: Decoded[CompletionRequest], identity: Identity) -> PreparedRequest:
    """Check and tokenise prompts; whatever can be refused before admission is refused here."""
    request, frontend = decoded.request, service.frontend
    model = service.resolve_model(request.model)
    names = completion_names(request)
    with naming_parameters(names):
        params = await decoded.run(partial(for_completion, request, service.limits))
        prompts = await decoded.run(partial(split, request.prompt))
        require_choices(len(prompts), params.n)
        prepared = await frontend.prepare_all(
            prompts,
            params,
            request_ids=[f"{identity.engine_id}-{index}" for index in range(len(prompts))],
            add_special_tokens=request.add_special_tokens is not False,
            priority=request.priority or 0,
            tenant=identity.tenant,
            cache_salt=service.cache_salt(identity.tenant, request.cache_salt),
            clamp_max_tokens=request.max_tokens is None,
        )
    return PreparedRequest(
        identity=identity,
        model=model,
        request=request,
        ignored=decoded.ignored,
        params=params,
        prompts=prepared,
        preambles=await decoded.run(lambda: [_preamble(frontend, request, prompt) for prompt in prepared]),
        logprobs=request.logprobs,
        is_score_only=request.max_tokens == 0,
        names=names,
    )


def split(prompt: PromptInput) -> list[str | list[int]]:
    """The prompts of a request: one text, several, one list of token ids, or several. Raises `InvalidParameter`."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise InvalidParameter("prompt", "must hold at least one prompt")
    # Long lists have been checked as they were read.
    kinds = {type(prompt[0])} if isinstance(prompt, TokenIds) else {type(item) for item in prompt}
    if len(kinds) > 1:
        raise InvalidParameter("prompt", "must hold texts, token ids or lists of token ids, not a mixture")
    return [prompt] if int in kinds else list(prompt)  # type: ignore[list-item, arg-type]


def _preamble(frontend: Frontend, request: CompletionRequest, prompt: PreparedPrompt) -> ChoicePreamble:
    if not request.echo:
        return ChoicePreamble(prompt_token_ids=prompt.prompt_token_ids)
    text = prompt.prompt
    if text is None or request.truncate_prompt_tokens is not None or request.logprobs is not None:
        # What the offsets of tokens point into is the text of just these tokens.
        text = frontend.tokenizer.decode(prompt.prompt_token_ids, skip_special_tokens=prompt.params.skip_special_tokens)
    first = prompt.prompt_token_ids[0]
    tokenizer = frontend.tokenizer
    return ChoicePreamble(
        prompt_token_ids=prompt.prompt_token_ids,
        echo=text,
        first_token=TextLogprob(first, tokenizer.token_text(first), tokenizer.token_bytes(first), 0.0),
    )

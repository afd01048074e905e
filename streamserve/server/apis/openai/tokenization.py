"""POST /tokenize and /detokenize: the model's tokenizer by itself."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency

from streamserve.errors import InvalidParameter
from streamserve.server.apis.openai.chat import conversation
from streamserve.server.apis.openai.requests.schemas import DetokenizeRequest, TokenizeRequest
from streamserve.server.delivery.identity import warning
from streamserve.server.http.bodies.request_body import convert, read
from streamserve.server.http.parameter_names import naming_parameters
from streamserve.server.service import Service


@post("/tokenize", status_code=200)
async def tokenize(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> Response[dict[str, Any]]:
    """The token ids of a prompt or of a conversation."""
    frontend = service.frontend
    decoded = await convert(await read(request, service.large_work), TokenizeRequest)
    body = decoded.request
    service.resolve_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise InvalidParameter("prompt", "give either prompt or messages")
    text = await conversation(service, decoded) if body.prompt is None else body.prompt
    adds_special_tokens = body.prompt is not None if body.add_special_tokens is None else body.add_special_tokens
    try:
        with naming_parameters({} if body.messages is None else {"prompt": "messages"}):
            token_ids = await frontend.encode(text, add_special_tokens=adds_special_tokens)
    except UnicodeEncodeError:
        raise InvalidParameter("prompt", "is not valid Unicode: it holds half of a surrogate pair") from None
    answer = {
        "count": len(token_ids),
        "max_model_len": frontend.info.max_model_len,
        "tokens": token_ids,
        "token_strs": await frontend.entries(token_ids) if body.return_token_strs else None,
    }
    return Response(answer, status_code=200, headers=_headers(decoded.ignored))


@post("/detokenize", status_code=200)
async def detokenize(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> Response[dict[str, Any]]:
    """The text of token ids."""
    frontend = service.frontend
    decoded = await convert(await read(request, service.large_work), DetokenizeRequest)
    body = decoded.request
    service.resolve_model(body.model)
    with naming_parameters({"prompt": "tokens"}):
        frontend.check_length(body.tokens)
        await decoded.run(partial(_check_ids, body.tokens, frontend.info.vocab_size))
        text = await frontend.decode(body.tokens)
    return Response({"prompt": text}, status_code=200, headers=_headers(decoded.ignored))


def _check_ids(token_ids: Sequence[int], vocab_size: int) -> None:
    lowest, highest = min(token_ids, default=0), max(token_ids, default=0)
    if lowest < 0 or highest >= vocab_size:
        raise InvalidParameter("tokens", f"must be ids from 0 to {vocab_size - 1}, got {lowest if lowest < 0 else highest}")


def _headers(ignored: Sequence[str]) -> dict[str, str]:
    return {"Warning": warning(ignored).decode()} if ignored else {}

"""POST /tokenize and /detokenize: the model's tokenizer by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from litestar import Request, Response, post
from litestar.di import NamedDependency

from streamserve.errors import InvalidParameter
from streamserve.server.apis.openai.chat import conversation
from streamserve.server.apis.openai.schemas import DetokenizeRequest, TokenizeRequest, decode
from streamserve.server.delivery.answering import warning
from streamserve.server.service import Service


@post("/tokenize", status_code=200)
async def tokenize(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> Response[dict[str, Any]]:
    """The token ids of a prompt or of a conversation."""
    frontend = service.frontend
    asked, ignored = decode(await request.body(), TokenizeRequest)
    service.resolve_model(asked.model)
    if (asked.prompt is None) == (asked.messages is None):
        raise InvalidParameter("prompt", "give either prompt or messages")
    text = await conversation(service, asked) if asked.prompt is None else asked.prompt
    adds_special_tokens = asked.prompt is not None if asked.add_special_tokens is None else asked.add_special_tokens
    try:
        token_ids = await frontend.encode(text, add_special_tokens=adds_special_tokens)
    except UnicodeEncodeError:
        raise InvalidParameter("prompt", "is not valid Unicode: it holds half of a surrogate pair") from None
    body: dict[str, Any] = {"count": len(token_ids), "max_model_len": frontend.info.max_model_len, "tokens": token_ids}
    if asked.return_token_strs:
        body["token_strs"] = [frontend.tokenizer.token_text(token_id) for token_id in token_ids]
    return Response(body, status_code=200, headers=_headers(ignored))


@post("/detokenize", status_code=200)
async def detokenize(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> Response[dict[str, Any]]:
    """The text of token ids."""
    frontend = service.frontend
    asked, ignored = decode(await request.body(), DetokenizeRequest)
    service.resolve_model(asked.model)
    size = frontend.info.vocab_size
    for token_id in asked.tokens:
        if not 0 <= token_id < size:
            raise InvalidParameter("tokens", f"must be ids from 0 to {size - 1}, got {token_id}")
    text = frontend.tokenizer.decode(asked.tokens, skip_special_tokens=False)
    return Response({"prompt": text}, status_code=200, headers=_headers(ignored))


def _headers(ignored: Sequence[str]) -> dict[str, str]:
    return {"Warning": warning(ignored).decode()} if ignored else {}

"""POST /v1/embeddings: vectors of prompts, computed beside the sequences that generate.

A request is a run like any other, of which no token comes: it is counted, cancelled and drained as they are.
"""

from __future__ import annotations

import base64
import time
from array import array
from functools import partial
from typing import Any, Literal

import orjson
from litestar import Request, post
from litestar.di import NamedDependency
from litestar.types import ASGIApp

from streamserve.errors import InvalidParameter, RequestAborted
from streamserve.server.apis.openai.completions import split
from streamserve.server.apis.openai.prepared_request import require_choices
from streamserve.server.apis.openai.requests.schemas import EmbeddingRequest
from streamserve.server.delivery.events import members
from streamserve.server.delivery.identity import answer_headers, identify
from streamserve.server.early_refusal import ADMITS
from streamserve.server.http.access.auth import tenant_of
from streamserve.server.http.bodies.request_body import convert, read
from streamserve.server.http.errors import error_body
from streamserve.server.http.parameter_names import naming_parameters
from streamserve.server.service import Service
from streamserve.server.telemetry.request_cost import TokenCounts
from streamserve.types import SamplingParams, TextDelta

EMBEDDING_PREFIX = "embd-"
"""What ids of embeddings begin with."""

Encoding = Literal["float", "base64"]


@post("/v1/embeddings", status_code=200, opt=ADMITS)
async def create_embeddings(request: Request[Any, Any, Any], service: NamedDependency[Service]) -> ASGIApp:
    """A vector for each of one or several prompts."""
    decoded = await convert(await read(request, service.large_work), EmbeddingRequest)
    body, frontend = decoded.request, service.frontend
    identity = identify(
        EMBEDDING_PREFIX,
        body.request_id,
        request.headers.get("x-request-id", ""),
        tenant=tenant_of(request.scope),
        taken=service.delivery.active_requests,
        patience_s=service.patience_s(request.headers),
    )
    model = service.resolve_model(body.model)
    if body.encoding_format not in (None, "float", "base64"):
        raise InvalidParameter("encoding_format", "must be float or base64")
    with naming_parameters({"prompt": "input"}):
        prompts = await decoded.run(partial(split, body.input))
        require_choices(len(prompts), 1)
        prepared = await frontend.prepare_all(
            prompts,
            _params(body, frontend.info.max_model_len),
            request_ids=[f"{identity.engine_id}-{index}" for index in range(len(prompts))],
            add_special_tokens=body.add_special_tokens is not False,
            priority=body.priority or 0,
            tenant=identity.tenant,
            cache_salt=service.cache_salt(identity.tenant, body.cache_salt),
            pooling=frontend.pooling(dimensions=body.dimensions, normalize=body.normalize),
        )
    run = service.new_run(identity, model, prepared)
    encoding: Encoding = "base64" if body.encoding_format == "base64" else "float"
    answer = Embeddings(identity.answer_id, model, run.account.usage, encoding, len(prepared))
    return service.delivery.whole_answer(run, answer, error_body, answer_headers(identity.header_id, decoded.ignored))


def _params(body: EmbeddingRequest, max_model_len: int) -> SamplingParams:
    kept = body.truncate_prompt_tokens
    return SamplingParams(max_tokens=1, detokenize=False, truncate_prompt_tokens=max_model_len if kept == -1 else kept)


class Embeddings:
    """Collects the vectors of one request; a `Collector`."""

    def __init__(self, id: str, model: str, usage: TokenCounts, encoding: Encoding, num_prompts: int) -> None:
        self._id, self._model, self._usage, self._encoding = id, model, usage, encoding
        self._vectors = [b""] * num_prompts

    def add(self, delta: TextDelta) -> None:
        if delta.finish_reason == "abort":
            raise RequestAborted("the request was cancelled")
        self._vectors[delta.index] = delta.embedding or b""

    @property
    def num_bytes(self) -> int:
        return 5 * sum(map(len, self._vectors))

    def body(self) -> bytes:
        data = b",".join([self._item(index, vector) for index, vector in enumerate(self._vectors)])
        count = self._usage.prompt_tokens
        usage = {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0, "prompt_tokens_details": None}
        head = members(id=self._id, object="list", created=int(time.time()), model=self._model)
        return b'{%b,"data":[%b],%b}' % (head, data, members(usage=usage))

    def _item(self, index: int, vector: bytes) -> bytes:
        """One vector at a time: JSON of many at once would hold up the interpreter."""
        value = base64.b64encode(vector).decode() if self._encoding == "base64" else array("f", vector).tolist()
        return orjson.dumps({"index": index, "object": "embedding", "embedding": value})

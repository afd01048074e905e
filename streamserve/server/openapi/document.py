"""The OpenAPI document: what `paths` lists, and schemas, derived from structs.

Pure functions. The structs of request bodies are those that requests are decoded into; the structs of response bodies
describe what the endpoints encode, and tests hold each endpoint to them.
"""

from __future__ import annotations

from typing import Any

import msgspec

import streamserve
from streamserve.server.openapi.operations import Body, with_heads
from streamserve.server.openapi.paths import anthropic, openai, responses, status

REQUESTS: list[Body] = [*openai.REQUESTS, *anthropic.REQUESTS, *responses.REQUESTS]
RESPONSES: list[Body] = [*openai.RESPONSES, *anthropic.RESPONSES, *responses.RESPONSES, *status.RESPONSES]

DESCRIPTION = """\
An OpenAI-compatible server that streams open-weight language models.

With `"stream": true` an answer is `text/event-stream`: each event is `data: ` and one JSON object, the last one `data: [DONE]`;
those of `/v1/responses` also carry an `event:` line and end with their terminal event. A blank line says that the server is
still at it. An error after the 200 is an event `{"error": …}`. Fields that no one here knows are named in a `Warning` header.
With `X-Stream-Resume: 1`, or `"resumable": true` in a completion or chat, events of a stream have ids: send the last one seen
as `Last-Event-ID`, to the same path or to `/v1/streams/{stream_id}`, to go on after a dropped connection.

`/v1/ws` and `/v1/responses` also take WebSocket upgrades. One socket carries many streams: send
`{"type": "chat.completion.create" | "completion.create" | "response.create", "stream_id": …}` with the fields of the POST body;
receive the objects that the SSE stream would carry, each with its `stream_id` and a `sequence_number`. `response.cancel` ends a
stream, `response.answer` its reasoning, `response.resume` goes on with one after a dropped connection, `ping` is answered with
`pong`. Upgrades are refused with an HTTP status and an error body. A browser may send its key as the subprotocol
`openai-insecure-api-key.<key>`.
"""


def document(root_path: str = "") -> dict[str, Any]:
    """The OpenAPI 3.1 description of this server."""
    _, schemas = msgspec.json.schema_components([*REQUESTS, *RESPONSES], ref_template="#/components/schemas/{name}")
    paths = {
        **openai.generation_paths(),
        **openai.running_paths(),
        **anthropic.message_paths(),
        **responses.response_paths(),
        **openai.tokenizer_paths(),
        **status.state_paths(),
        **status.page_paths(),
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "streamserve", "version": streamserve.__version__, "description": DESCRIPTION},
        "servers": [{"url": root_path or "/"}],
        "paths": with_heads(paths),
        "components": {
            "schemas": schemas,
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}},
        },
    }

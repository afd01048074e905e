"""What answers look like, as JSON Schema, for /openapi.json. Plain values.

Objects may hold more than is listed here; what is listed is always there unless it is not `required`.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

_TEXT: Schema = {"type": "string"}
_NUMBER: Schema = {"type": "integer"}
_MAYBE_TEXT: Schema = {"type": ["string", "null"]}
_OBJECT: Schema = {"type": "object"}


def ref(name: str) -> Schema:
    """A schema of `SCHEMAS`, or one of a request body."""
    return {"$ref": f"#/components/schemas/{name}"}


def _object(*optional: str, **properties: Schema) -> Schema:
    required = [name for name in properties if name not in optional]
    return {"type": "object", "required": required, "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


def _const(value: str) -> Schema:
    return {"type": "string", "const": value}


_FINISH_REASON: Schema = {"type": ["string", "null"], "enum": ["stop", "length", "tool_calls", "abort", "time", None]}
_STOP_REASON: Schema = {"type": ["string", "integer", "null"]}
_TOOL_CALL = _object(id=_TEXT, type=_const("function"), function=_object(name=_TEXT, arguments=_TEXT))
_DELTA_CALL = _object("id", "type", id=_TEXT, type=_const("function"), index=_NUMBER, function=_OBJECT)

SCHEMAS: dict[str, Schema] = {
    "Error": _object(error=_object(message=_TEXT, type=_TEXT, param=_MAYBE_TEXT, code=_MAYBE_TEXT)),
    "Usage": _object(prompt_tokens=_NUMBER, completion_tokens=_NUMBER, total_tokens=_NUMBER),
    "Model": _object(
        id=_TEXT, object=_const("model"), created=_NUMBER, owned_by=_TEXT, root=_MAYBE_TEXT, parent=_MAYBE_TEXT,
        max_model_len=_NUMBER,
    ),
    "ModelList": _object(object=_const("list"), data=_list(ref("Model"))),
    "Completion": _object(
        id=_TEXT,
        object=_const("text_completion"),
        created=_NUMBER,
        model=_TEXT,
        choices=_list(_object(index=_NUMBER, text=_TEXT, finish_reason=_FINISH_REASON, stop_reason=_STOP_REASON)),
        usage=ref("Usage"),
    ),
    "CompletionChunk": _object(
        id=_TEXT,
        object=_const("text_completion"),
        created=_NUMBER,
        model=_TEXT,
        choices=_list(_object(index=_NUMBER, text=_TEXT, finish_reason=_FINISH_REASON)),
    ),
    "ChatCompletion": _object(
        id=_TEXT,
        object=_const("chat.completion"),
        created=_NUMBER,
        model=_TEXT,
        choices=_list(
            _object(
                index=_NUMBER,
                message=_object(
                    "reasoning_content", "tool_calls",
                    role=_const("assistant"), content=_MAYBE_TEXT, reasoning_content=_MAYBE_TEXT, tool_calls=_list(_TOOL_CALL),
                ),
                finish_reason=_FINISH_REASON,
                stop_reason=_STOP_REASON,
            )
        ),
        usage=ref("Usage"),
    ),
    "ChatCompletionChunk": _object(
        id=_TEXT,
        object=_const("chat.completion.chunk"),
        created=_NUMBER,
        model=_TEXT,
        choices=_list(
            _object(
                index=_NUMBER,
                delta=_object(
                    "role", "content", "reasoning_content", "tool_calls",
                    role=_const("assistant"), content=_MAYBE_TEXT, reasoning_content=_MAYBE_TEXT, tool_calls=_list(_DELTA_CALL),
                ),
                finish_reason=_FINISH_REASON,
            )
        ),
    ),
    "Response": _object(
        id=_TEXT,
        object=_const("response"),
        status={"type": "string", "enum": ["in_progress", "completed", "incomplete", "cancelled", "failed"]},
        output=_list(_object(id=_TEXT, type=_TEXT)),
    ),
    "ResponseEvent": _object(type=_TEXT, sequence_number=_NUMBER),
    "ResponseDeleted": _object(id=_TEXT, object=_const("response"), deleted={"type": "boolean"}),
    "InputItems": _object(
        object=_const("list"), data=_list(_OBJECT), first_id=_TEXT, last_id=_TEXT, has_more={"type": "boolean"},
    ),
    "RequestCancelled": _object(id=_TEXT, object=_const("request.cancelled"), cancelled={"type": "boolean"}),
    "Tokens": _object("token_strs", count=_NUMBER, max_model_len=_NUMBER, tokens=_list(_NUMBER), token_strs=_list(_TEXT)),
    "Text": _object(prompt=_TEXT),
    "Ready": _object(status=_const("ready")),
    "Version": _object(version=_TEXT),
    "Load": _object(
        "num_requests_running", "num_requests_waiting", "num_requests_paused", "kv_blocks_used", "kv_blocks_total",
        server_load=_NUMBER, phase=_TEXT, num_requests_running=_NUMBER, num_requests_waiting=_NUMBER,
        num_requests_paused=_NUMBER, kv_blocks_used=_NUMBER, kv_blocks_total=_NUMBER,
    ),
}  # fmt: skip

"""What a request asks for, as `SamplingParams`: defaults filled in, aliases folded, what is not built refused by name.

Pure functions of the request and the server's limits. Ranges are checked by `SamplingParams` itself.
"""

from __future__ import annotations

from typing import Any

import msgspec

from streamserve.errors import InvalidParameter, UnsupportedParameter
from streamserve.server.apis.openai.requests.schemas import (
    ChatRequest,
    CompletionRequest,
    GenerationRequest,
    ResponseFormat,
    StructuredOutputsInput,
)
from streamserve.server.apis.openai.requests.tools import ToolUse
from streamserve.server.config import RequestLimits
from streamserve.text.preparation import num_alternatives
from streamserve.types import SamplingParams, StructuredOutputs

DEFAULT_COMPLETION_TOKENS = 16
"""max_tokens of /v1/completions when neither the request nor the model sets it; the OpenAI API's."""

_CONVERTED = {"max_tokens", "truncate_prompt_tokens", "structured_outputs"}
_COPIED = [
    name for name in SamplingParams.__struct_fields__ if name in GenerationRequest.__struct_fields__ and name not in _CONVERTED
]
"""What a request and `SamplingParams` both have, with the same meaning."""

_UNSUPPORTED = {
    "use_beam_search": "beam search has no stream; sample with n instead",
    "logits_processors": "code in requests is not run; use logit_bias, bad_words or allowed_token_ids",
    "lora_request": "this server has one set of weights",
    "kv_transfer_params": "prefill and decode run in one engine",
    "guided_decoding_backend": "there is one backend; leave it out",
    "guided_whitespace_pattern": "write the whitespace into a grammar instead",
    "prompt_embeds": "send the prompt as text or token ids",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "audio": "this server takes and gives text only",
    "logprob_token_ids": "ask for top logprobs",
    "whitespace_pattern": "write the whitespace into a grammar instead",
    "web_search_options": "this server does not search the web",
    "repetition_detection": "raise frequency_penalty, or end the stream from the client",
    "watermarking": "answers are not marked",
    "ec_transfer_params": "prompts are text",
    "vllm_xargs": "there are no extensions to read them",
    "return_prompt_text": "POST /tokenize and /detokenize show the prompt of a conversation",
    "media_io_kwargs": "prompts are text",
    "mm_processor_kwargs": "prompts are text",
}


_UNSUPPORTED_IN_STRUCTURE = {
    "whitespace_pattern": "write the whitespace into a grammar instead",
    "disable_any_whitespace": "write the whitespace into a grammar instead",
    "disable_additional_properties": "say additionalProperties: false in the schema",
}

HINTS = ("prediction",)
"""Fields of the API that may speed up an answer and do not here: they change nothing, and the answer's headers name them."""


def for_completion(request: CompletionRequest, limits: RequestLimits) -> SamplingParams:
    """Raises `InvalidParameter` or `UnsupportedParameter` naming the parameter."""
    if request.suffix:
        raise UnsupportedParameter("suffix", "the model completes at the end of a prompt only")
    if request.best_of is not None and request.best_of != (request.n or 1):
        raise UnsupportedParameter("best_of", "all sampled choices are returned; ask for them with n")
    max_tokens = request.max_tokens
    if max_tokens == 0 and request.echo:
        # Scoring a prompt: one token is sampled and left out of the answer.
        max_tokens = 1
    fields = _common(request, limits)
    fields["max_tokens"] = _first(max_tokens, limits.defaults.get("max_tokens"), DEFAULT_COMPLETION_TOKENS)
    if request.logprobs is not None:
        fields["logprobs"] = _num_alternatives("logprobs", request.logprobs, limits)
        if request.echo:
            fields.setdefault("prompt_logprobs", fields["logprobs"])
    return SamplingParams(**fields)


def for_chat(request: ChatRequest, limits: RequestLimits, tools: ToolUse) -> SamplingParams:
    """Raises `InvalidParameter` or `UnsupportedParameter` naming the parameter."""
    _refuse_chat(request)
    fields = _common(request, limits)
    if tools.is_forced:
        _refuse_two_languages(request)
        fields["structured_outputs"] = tools.grammar()
    fields["max_tokens"] = _first(request.max_completion_tokens, request.max_tokens, limits.defaults.get("max_tokens"))
    if request.logprobs:
        fields["logprobs"] = _num_alternatives("top_logprobs", request.top_logprobs or 0, limits)
    elif request.top_logprobs:
        raise InvalidParameter("top_logprobs", "needs logprobs: true")
    return SamplingParams(**fields)


def with_reasoning(request: ChatRequest) -> ChatRequest:
    """The request with its `reasoning` in the fields that mean the same. Raises `InvalidParameter` where they contradict it."""
    reasoning = request.reasoning
    if reasoning is None:
        return request
    effort = "none" if reasoning.enabled is False else reasoning.effort
    said = {"reasoning_effort": effort, "thinking_token_budget": reasoning.max_tokens}
    said["include_reasoning"] = False if reasoning.exclude else None
    changes = {name: value for name, value in said.items() if value is not None}
    for name, value in changes.items():
        if getattr(request, name) not in (None, value):
            raise InvalidParameter(name, "contradicts reasoning")
    return msgspec.structs.replace(request, reasoning=None, **changes)


def _refuse_chat(request: ChatRequest) -> None:
    if request.modalities not in (None, ["text"]):
        raise UnsupportedParameter("modalities", "this server gives text only")
    if request.echo:
        raise UnsupportedParameter("echo", "chat answers hold the new message only")


def _refuse_two_languages(request: GenerationRequest) -> None:
    """A forced call is the whole answer; `response_format` is about the answers that are none."""
    if _from_structured_outputs(request.structured_outputs) or _from_guided(request):
        raise InvalidParameter("structured_outputs", "can't be combined with a tool_choice that forces a call")


def _common(request: GenerationRequest, limits: RequestLimits) -> dict[str, Any]:
    for name, reason in _UNSUPPORTED.items():
        # Zero tokens are an order, too.
        if (value := getattr(request, name, None)) or (value is not False and value == 0):
            raise UnsupportedParameter(name, reason)
    if request.truncation_side not in (None, "left"):
        raise UnsupportedParameter("truncation_side", "prompts are cut on the left")
    if request.stream_interval not in (None, 1):
        raise UnsupportedParameter("stream_interval", "each token is sent as soon as it is decoded")
    if request.priority and not limits.priority_scheduling:
        raise InvalidParameter("priority", "needs a server started with --scheduling-policy priority")
    if request.stream_options is not None and not request.stream:
        raise InvalidParameter("stream_options", "is only allowed with stream: true")
    if request.resumable and not request.stream:
        raise InvalidParameter("resumable", "is only allowed with stream: true")
    if request.prompt_logprobs is not None and request.stream:
        raise InvalidParameter("prompt_logprobs", "is not available with stream: true")
    if request.cache_salt == "":
        raise InvalidParameter("cache_salt", "must not be empty")
    fields = limits.with_defaults({name: getattr(request, name) for name in _COPIED})
    if request.prompt_logprobs is not None:
        fields["prompt_logprobs"] = _num_alternatives("prompt_logprobs", request.prompt_logprobs, limits)
    if request.truncate_prompt_tokens is not None:
        kept = request.truncate_prompt_tokens
        fields["truncate_prompt_tokens"] = limits.max_model_len if kept == -1 else kept
    structured = _structured_outputs(request)
    if request.stream_options is not None and request.stream_options.include_partial_json and not _is_json(structured):
        reason = "needs an answer of JSON: give response_format json_schema or json_object, or structured_outputs.json"
        raise InvalidParameter("stream_options.include_partial_json", reason)
    if structured is not None:
        fields["structured_outputs"] = structured
    return fields


def _is_json(structured: StructuredOutputs | None) -> bool:
    return structured is not None and (structured.json is not None or bool(structured.json_object))


def _num_alternatives(name: str, value: int, limits: RequestLimits) -> int:
    return num_alternatives(name, value, most=limits.max_logprobs, vocab_size=limits.vocab_size)


def _first(*values: Any) -> Any:
    return next((value for value in values if value is not None), None)


def is_constrained(request: GenerationRequest) -> bool:
    """Whether a request confines its answers to a language. Raises as `for_chat`."""
    return _structured_outputs(request) is not None


def answer_schema(request: GenerationRequest) -> dict[str, Any] | None:
    """The JSON schema that all content has for `response_format`; None where it has none. Raises as `for_chat`."""
    wanted = _from_response_format(request)
    if wanted is None or wanted.structural_tag is not None:
        return None
    return wanted.json if isinstance(wanted.json, dict) else {"type": "object"}


def _structured_outputs(request: GenerationRequest) -> StructuredOutputs | None:
    constraints = [
        constraint
        for constraint in (
            _from_response_format(request),
            _from_structured_outputs(request.structured_outputs),
            _from_guided(request),
        )
        if constraint is not None
    ]
    if len(constraints) > 1:
        raise InvalidParameter("structured_outputs", "give one of response_format, structured_outputs and guided_*")
    return constraints[0] if constraints else None


def _from_response_format(request: GenerationRequest) -> StructuredOutputs | None:
    response_format = request.response_format
    if response_format is None or response_format.type == "text":
        return None
    if response_format.type == "json_object":
        schema = response_format.schema
        return StructuredOutputs(json_object=True) if schema is None else StructuredOutputs(json=schema)
    if response_format.type == "json_schema":
        return StructuredOutputs(json=_schema_of(response_format))
    if response_format.type == "structural_tag":
        return StructuredOutputs(structural_tag=_structural_tag(response_format))
    raise InvalidParameter("response_format.type", "must be text, json_object, json_schema or structural_tag")


def _structural_tag(response_format: ResponseFormat) -> dict[str, Any]:
    fields = {name: getattr(response_format, name) for name in ("format", "structures", "triggers")}
    return {"type": "structural_tag", **{name: value for name, value in fields.items() if value is not None}}


def _schema_of(response_format: ResponseFormat) -> dict[str, Any]:
    nested = response_format.json_schema
    schema = response_format.schema if nested is None else nested.schema
    if schema is None:
        raise InvalidParameter("response_format.json_schema.schema", "is required with type json_schema")
    return schema


def _from_structured_outputs(outputs: StructuredOutputsInput | None) -> StructuredOutputs | None:
    if outputs is None:
        return None
    for name, reason in _UNSUPPORTED_IN_STRUCTURE.items():
        if getattr(outputs, name):
            raise UnsupportedParameter(f"structured_outputs.{name}", reason)
    return StructuredOutputs(
        json=outputs.json,
        json_object=outputs.json_object or None,
        regex=outputs.regex,
        choice=outputs.choice,
        grammar=outputs.grammar,
        structural_tag=outputs.structural_tag,
    )


def _from_guided(request: GenerationRequest) -> StructuredOutputs | None:
    guided = {
        "json": request.guided_json,
        "regex": request.guided_regex,
        "choice": request.guided_choice,
        "grammar": request.guided_grammar,
    }
    guided = {name: value for name, value in guided.items() if value is not None}
    return StructuredOutputs(**guided) if guided else None  # type: ignore[arg-type]

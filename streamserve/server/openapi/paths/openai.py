"""Paths of OpenAI's completions, chats and embeddings, of their streams and requests, and of the tokenizer."""

from __future__ import annotations

from streamserve.server.apis.openai.answers.response_schemas import (
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    EmbeddingList,
    Text,
    Tokens,
)
from streamserve.server.apis.openai.requests.schemas import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    TokenizeRequest,
)
from streamserve.server.apis.responses.response_schemas import (
    ResponseStreamEvent,
)
from streamserve.server.openapi.examples import QUESTION
from streamserve.server.openapi.operations import (
    LAST_EVENT_ID,
    RESUMING,
    Body,
    Operation,
    Paths,
    Schema,
    events_content,
    json_content,
    operation,
    path_parameter,
    secured,
    streamed_content,
    with_body,
)
from streamserve.server.openapi.response_schemas import (
    Model,
    ModelList,
    RequestAnswering,
    RequestCancelled,
)

_CITY: Schema = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 20}},
    "required": ["city"],
    "additionalProperties": False,
}

_WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}

_COMPLETIONS = {
    "whole": {"model": "demo", "prompt": "The capital of France is", "max_tokens": 16},
    "streamed": {"model": "demo", "prompt": "Once upon a time", "max_tokens": 16, "stream": True},
    "several": {"model": "demo", "prompt": ["One", "Two"], "n": 2, "seed": 1, "logprobs": 2, "max_tokens": 4},
}

_CHATS = {
    "whole": {"model": "demo", "messages": QUESTION, "max_tokens": 16},
    "streamed": {"model": "demo", "messages": QUESTION, "stream": True, "stream_options": {"include_usage": True}},
    "tools": {"model": "demo", "messages": QUESTION, "tools": [_WEATHER], "tool_choice": "none", "max_tokens": 16},
    "structured": {
        "model": "demo",
        "messages": QUESTION,
        "response_format": {"type": "json_schema", "json_schema": {"name": "city", "schema": _CITY}},
    },
}

_EMBEDDINGS = {
    "whole": {"model": "demo", "input": "The capital of France is Paris."},
    "several": {"model": "demo", "input": ["One", "Two"], "encoding_format": "base64", "dimensions": 8},
}


REQUESTS: list[Body] = [ChatRequest, CompletionRequest, DetokenizeRequest, EmbeddingRequest, TokenizeRequest]
RESPONSES: list[Body] = [
    ChatCompletion,
    ChatCompletionChunk,
    Completion,
    CompletionChunk,
    EmbeddingList,
    Model,
    ModelList,
    RequestAnswering,
    RequestCancelled,
    Text,
    Tokens,
]


def generation_paths() -> Paths:
    """Models, completions, chats and embeddings."""
    return {
        "/v1/models": {"get": secured(operation("listModels", "The served models.", json_content(ModelList)))},
        "/v1/models/{name}": {
            "get": secured(operation("showModel", "One served model.", json_content(Model), path_parameter("name", "demo")))
        },
        "/v1/completions": {
            "post": with_body(
                operation(
                    "createCompletion",
                    "Continue one or several prompts.",
                    streamed_content(Completion, CompletionChunk),
                    *RESUMING,
                ),
                CompletionRequest,
                _COMPLETIONS,
            )
        },
        "/v1/chat/completions": {
            "post": with_body(
                operation(
                    "createChatCompletion",
                    "The next message of a conversation.",
                    streamed_content(ChatCompletion, ChatCompletionChunk),
                    *RESUMING,
                ),
                ChatRequest,
                _CHATS,
            )
        },
        "/invocations": {
            "post": with_body(
                operation(
                    "invoke",
                    "SageMaker's path for chats, which have `messages`, and completions, which have a `prompt`.",
                    streamed_content(ChatCompletion, ChatCompletionChunk),
                ),
                ChatRequest,
                {"whole": _CHATS["whole"], "streamed": _CHATS["streamed"]},
            )
        },
        "/v1/embeddings": {
            "post": with_body(
                operation("createEmbedding", "A vector for each of one or several prompts.", json_content(EmbeddingList)),
                EmbeddingRequest,
                _EMBEDDINGS,
            )
        },
    }


def running_paths() -> Paths:
    """What can be done with requests and streams that run."""
    return {
        "/v1/streams/{stream_id}": {"get": _continued()},
        "/v1/requests/{request_id}/cancel": {
            "post": secured(
                operation(
                    "cancelRequest",
                    'End a running request; its stream ends with finish_reason "abort" and keeps its text.',
                    json_content(RequestCancelled),
                    path_parameter("request_id", "cmpl-1"),
                )
            )
        },
        "/v1/requests/{request_id}/answer": {
            "post": secured(
                operation(
                    "answerNow",
                    "End the reasoning of a running request within one step; its answer goes on in the same stream.",
                    json_content(RequestAnswering),
                    path_parameter("request_id", "chatcmpl-1"),
                )
            )
        },
    }


def _continued() -> Operation:
    continued = operation(
        "continueStream",
        "The events of a stream behind the one that `Last-Event-ID` names, or from the first, and those to come.",
        events_content(CompletionChunk, ChatCompletionChunk, ResponseStreamEvent),
        path_parameter("stream_id", "chatcmpl-1"),
        LAST_EVENT_ID,
    )
    everything_read = {"204": {"description": "That event was the last."}}
    return secured({**continued, "responses": {**continued["responses"], **everything_read}})


def tokenizer_paths() -> Paths:
    """The tokenizer by itself."""
    tokenize = operation("tokenize", "The token ids of a prompt or of a conversation.", json_content(Tokens))
    detokenize = operation("detokenize", "The text of token ids.", json_content(Text))
    prompts = {"prompt": {"model": "demo", "prompt": "Hello!"}, "chat": {"model": "demo", "messages": QUESTION}}
    return {
        "/tokenize": {"post": with_body(tokenize, TokenizeRequest, prompts)},
        "/detokenize": {"post": with_body(detokenize, DetokenizeRequest, {"whole": {"tokens": [104, 105]}})},
    }

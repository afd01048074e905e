"""Response bodies of completions, chats and the tokenizer, for /openapi.json.

Types only: answers are encoded piece by piece on the way out and never built from these. A field that is not in every answer
has the default `UNSET`.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import UNSET, Struct, UnsetType

FinishReason = Literal["stop", "length", "tool_calls", "abort"]


class PromptTokensDetails(Struct, kw_only=True):
    """Prompt tokens whose KV was found in the prefix cache."""

    cached_tokens: int


class Usage(Struct, kw_only=True):
    """Tokens of a request over all of its prompts and choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails


class RankedLogprob(Struct, kw_only=True):
    """A token at one position of the prompt; `rank` is null where it is not known."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, RankedLogprob] | None]


class CompletionLogprobs(Struct, kw_only=True):
    """Logprobs of a completion: one entry of each list per token, null for a prompt's first."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(Struct, kw_only=True):
    """One choice of a completion."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    prompt_logprobs: PromptLogprobs | None
    token_ids: list[int] | None
    prompt_token_ids: list[int] | None


class Completion(Struct, kw_only=True):
    """The answer of /v1/completions."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    service_tier: None
    system_fingerprint: None
    kv_transfer_params: None


class CompletionChunkChoice(Struct, kw_only=True):
    """More of one choice; the last part has a finish reason."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class QueuedPrompt(Struct, kw_only=True, tag_field="state", tag="queued"):
    """The place of choice `index` in the queue of its key, and the seconds until it is likely to be its turn."""

    index: int
    position: int
    wait_s: float | None


class PrefilledPrompt(Struct, kw_only=True, tag_field="state", tag="prefill"):
    """Of the prompt's `total` tokens `processed` are computed, `cache` of them before this request."""

    index: int
    total: int
    cache: int
    processed: int
    time_ms: float


class PartialJson(Struct, kw_only=True):
    """A value inside the JSON of choice `index`, at a path of keys and indices."""

    index: int
    path: list[str | int]
    value: Any


class CompletionChunk(Struct, kw_only=True):
    """One event of a streamed completion."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    progress: QueuedPrompt | PrefilledPrompt | UnsetType = UNSET
    partial_json: PartialJson | UnsetType = UNSET


class TokenLogprob(Struct, kw_only=True):
    """A token, its logprob and its UTF-8 bytes."""

    token: str
    logprob: float
    bytes: list[int]


class ChatTokenLogprob(TokenLogprob, kw_only=True):
    """A token of a chat's answer, and the likeliest ones in its place."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(Struct, kw_only=True):
    """Logprobs of a chat's answer."""

    content: list[ChatTokenLogprob]


class FunctionCall(Struct, kw_only=True):
    """A function to call; `arguments` is JSON."""

    name: str
    arguments: str


class ToolCall(Struct, kw_only=True):
    """A call that the model makes."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class ChatMessage(Struct, kw_only=True):
    """The message of an answer; `content` is null beside reasoning or tool calls alone."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    annotations: None
    audio: None
    function_call: None
    reasoning: str | None
    reasoning_content: str | None
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(Struct, kw_only=True):
    """One choice of a chat completion."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason
    stop_reason: str | int | None
    token_ids: list[int] | None


class ChatCompletion(Struct, kw_only=True):
    """The answer of /v1/chat/completions."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    prompt_logprobs: PromptLogprobs | None
    prompt_token_ids: list[int] | None
    service_tier: None
    system_fingerprint: None
    kv_transfer_params: None


class FunctionCallDelta(Struct, kw_only=True):
    """The name of a function, in a call's first delta, and more of its arguments."""

    arguments: str
    name: str | UnsetType = UNSET


class ToolCallDelta(Struct, kw_only=True):
    """More of the call with this `index`; the first delta of a call has its `id`."""

    index: int
    function: FunctionCallDelta
    id: str | UnsetType = UNSET
    type: Literal["function"] | UnsetType = UNSET


class ChatDelta(Struct, kw_only=True):
    """More of a message."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    reasoning: str | UnsetType = UNSET
    reasoning_content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(Struct, kw_only=True):
    """More of one choice; the last part has a finish reason."""

    index: int
    delta: ChatDelta
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason | None
    stop_reason: str | int | UnsetType | None = UNSET
    token_ids: list[int] | UnsetType = UNSET


class ChatCompletionChunk(Struct, kw_only=True):
    """One event of a streamed chat completion."""

    id: str
    object: Literal["chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChunkChoice]
    usage: Usage | UnsetType | None = UNSET
    progress: QueuedPrompt | PrefilledPrompt | UnsetType = UNSET
    partial_json: PartialJson | UnsetType = UNSET
    prompt_token_ids: list[int] | UnsetType = UNSET


class Embedding(Struct, kw_only=True):
    """The vector of one prompt: numbers, or the base64 of their float32."""

    index: int
    object: Literal["embedding"]
    embedding: list[float] | str


class EmbeddingUsage(Struct, kw_only=True):
    """Tokens of all prompts; nothing is generated."""

    prompt_tokens: int
    total_tokens: int
    completion_tokens: int
    prompt_tokens_details: None


class EmbeddingList(Struct, kw_only=True):
    """The vectors of one or several prompts, in their order."""

    id: str
    object: Literal["list"]
    created: int
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage


class Tokens(Struct, kw_only=True):
    """The answer of /tokenize."""

    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None


class Text(Struct, kw_only=True):
    """The answer of /detokenize."""

    prompt: str

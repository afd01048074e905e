"""Requests and responses, typed. Fields that a server adds are ignored; fields it leaves out have defaults."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

import msgspec


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one request, by the server."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0


class Progress(msgspec.Struct, frozen=True):
    """How far an answer is before its first token; sent when `stream_options` say `include_progress`.

    index      the choice
    state      "queued" or "prefill"
    position   while queued: in the queue, from 1
    wait_s     while queued: seconds until it is likely to be its turn; None when unknown
    total      in prefill: tokens of the prompt
    cache      in prefill: of these, computed before this request
    processed  in prefill: of these, computed so far, with those of the cache
    time_ms    in prefill: milliseconds since it began
    """

    index: int = 0
    state: str = ""
    position: int | None = None
    wait_s: float | None = None
    total: int | None = None
    cache: int | None = None
    processed: int | None = None
    time_ms: float | None = None


class PartialJson(msgspec.Struct, frozen=True):
    """A complete value inside an answer of JSON; sent when `stream_options` say `include_partial_json`.

    index  the choice
    path   keys and indices from the outermost value
    """

    index: int = 0
    path: list[str | int] = []
    value: Any = None


class CompletionChoice(msgspec.Struct, frozen=True):
    """One text of a completion: whole, or the next piece of it in a stream."""

    index: int = 0
    text: str = ""
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: dict[str, Any] | None = None


class Completion(msgspec.Struct, frozen=True):
    """A `/v1/completions` response, or one chunk of its stream."""

    id: str = ""
    model: str = ""
    created: int = 0
    choices: list[CompletionChoice] = []
    usage: Usage | None = None
    progress: Progress | None = None
    partial_json: PartialJson | None = None

    @property
    def text(self) -> str:
        """The first choice's text; "" in a chunk that carries none."""
        return next((choice.text for choice in self.choices if choice.index == 0), "")

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended; None while it runs."""
        return next((choice.finish_reason for choice in self.choices if choice.index == 0), None)


class AssistantMessage(msgspec.Struct, frozen=True):
    """A message of the assistant: whole, or what a chunk adds to it."""

    role: str | None = None
    content: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[dict[str, Any]] | None = None


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer of a chat completion; `message` when whole, `delta` in a stream."""

    index: int = 0
    message: AssistantMessage | None = None
    delta: AssistantMessage | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: dict[str, Any] | None = None


class ChatCompletion(msgspec.Struct, frozen=True):
    """A `/v1/chat/completions` response, or one chunk of its stream."""

    id: str = ""
    model: str = ""
    created: int = 0
    choices: list[ChatChoice] = []
    usage: Usage | None = None
    progress: Progress | None = None
    partial_json: PartialJson | None = None

    @property
    def text(self) -> str:
        """The first choice's content; "" in a chunk that carries none."""
        for choice in self.choices:
            message = choice.message or choice.delta
            if choice.index == 0 and message is not None:
                return message.content or ""
        return ""

    @property
    def finish_reason(self) -> str | None:
        """Why the first choice ended; None while it runs."""
        return next((choice.finish_reason for choice in self.choices if choice.index == 0), None)


class Model(msgspec.Struct, frozen=True):
    """An entry of `/v1/models`; `max_model_len` is in tokens, None when the server does not report it."""

    id: str
    owned_by: str = ""
    created: int = 0
    max_model_len: int | None = None


class ModelList(msgspec.Struct, frozen=True):
    """The body of `/v1/models`."""

    data: list[Model]


class Health(msgspec.Struct, frozen=True):
    """`is_alive`: the process answers. `is_ready`: the model is loaded and requests are taken."""

    is_alive: bool
    is_ready: bool


class Answering(msgspec.Struct, frozen=True):
    """A request whose reasoning has been ended."""

    id: str


class Message(TypedDict, total=False):
    """A chat message of a request."""

    role: str
    content: str | list[dict[str, Any]] | None
    name: str
    tool_calls: list[dict[str, Any]]
    tool_call_id: str


class SamplingOptions(TypedDict, total=False):
    """Options of both endpoints; names and meanings are OpenAI's and vLLM's."""

    max_tokens: int | None
    temperature: float
    top_p: float
    top_k: int
    min_p: float
    n: int
    seed: int | None
    stop: str | list[str] | None
    stop_token_ids: list[int] | None
    presence_penalty: float
    frequency_penalty: float
    repetition_penalty: float
    min_tokens: int
    ignore_eos: bool
    skip_special_tokens: bool
    include_stop_str_in_output: bool
    logit_bias: dict[str, float] | None
    allowed_token_ids: list[int] | None
    bad_words: list[str] | None
    truncate_prompt_tokens: int | None
    structured_outputs: dict[str, Any] | None
    max_time: float | None
    priority: int
    cache_salt: str
    user: str
    stream_options: dict[str, Any]
    extra_body: dict[str, Any]


class CompletionOptions(SamplingOptions, total=False):
    """Options of `/v1/completions`."""

    echo: bool
    logprobs: int | None


class ChatOptions(SamplingOptions, total=False):
    """Options of `/v1/chat/completions`."""

    max_completion_tokens: int | None
    logprobs: bool
    top_logprobs: int | None
    response_format: dict[str, Any] | None
    tools: list[dict[str, Any]] | None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any]
    parallel_tool_calls: bool
    reasoning_effort: Literal["low", "medium", "high"]
    chat_template: str
    chat_template_kwargs: dict[str, Any]
    add_generation_prompt: bool
    continue_final_message: bool


Prompt = str | list[str] | list[int] | list[list[int]]

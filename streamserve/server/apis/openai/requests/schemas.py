"""Request bodies as typed structs: OpenAI's fields, then vLLM's. Values are checked in `parameters`."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

Seed = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Priority = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
Count = Annotated[int, msgspec.Meta(ge=-(2**31), le=2**31 - 1)]
RequestId = Annotated[str, msgspec.Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9._:-]+(?!\n)$")]
PromptInput = str | list[str | int | list[int]]


class StreamOptions(msgspec.Struct, kw_only=True):
    """What a stream carries beside the answer.

    include_usage           one more event with the usage
    continuous_usage_stats  the usage so far on every event
    include_progress        events about the queue and the prompt, before the first token
    include_partial_json    events with the values inside an answer of JSON, as they complete
    """

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None
    include_progress: bool | None = None
    include_partial_json: bool | None = None


class StructuredOutputsInput(msgspec.Struct, kw_only=True):
    """vLLM's `structured_outputs`; exactly one of the constraints set."""

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    whitespace_pattern: str | None = None
    structural_tag: str | dict[str, Any] | None = None
    disable_any_whitespace: bool | None = None
    disable_additional_properties: bool | None = None
    disable_fallback: bool | None = None


class JsonSchemaFormat(msgspec.Struct, kw_only=True):
    """`response_format.json_schema` of the OpenAI API."""

    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, kw_only=True):
    """`response_format`: text, json_object or json_schema; `schema` is where llama.cpp has that of a json_object.

    Or vLLM's and SGLang's structural_tag: a `format`, or the earlier `structures` and `triggers`.
    """

    type: str
    format: dict[str, Any] | None = None
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None
    json_schema: JsonSchemaFormat | None = None
    schema: dict[str, Any] | None = None


class ReasoningInput(msgspec.Struct, kw_only=True):
    """`reasoning` of a chat, as routers of several providers have it: how much the model thinks, and whether that is shown.

    effort      as `reasoning_effort`
    max_tokens  as `thinking_token_budget`
    exclude     leave reasoning out of the answer
    enabled     false for no reasoning
    """

    effort: str | None = None
    max_tokens: Count | None = None
    exclude: bool | None = None
    enabled: bool | None = None


class GenerationRequest(msgspec.Struct, kw_only=True):
    """What completions and chat completions have in common; null means not given."""

    model: str | None = None
    max_tokens: Count | None = None
    temperature: float | None = None
    top_p: float | None = None
    n: Count | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    resumable: bool | None = None
    stop: str | list[str] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    seed: Seed | None = None
    user: str | None = None

    top_k: Count | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    min_tokens: Count | None = None
    stop_token_ids: list[Count] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    skip_special_tokens: bool | None = None
    spaces_between_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    truncate_prompt_tokens: Count | None = None
    truncation_side: str | None = None
    logprob_token_ids: list[Count] | None = None
    thinking_token_budget: Count | None = None
    repetition_detection: dict[str, Any] | None = None
    stream_interval: Count | None = None
    watermarking: bool | None = None
    whitespace_pattern: str | None = None
    allowed_token_ids: list[Count] | None = None
    bad_words: list[str] | None = None
    prompt_logprobs: Count | None = None
    max_time: float | None = None
    priority: Priority | None = None
    request_id: RequestId | None = None
    cache_salt: str | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None

    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputsInput | None = None
    guided_json: str | dict[str, Any] | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None

    use_beam_search: bool | None = None
    logits_processors: list[Any] | None = None
    lora_request: dict[str, Any] | None = None
    kv_transfer_params: dict[str, Any] | None = None
    ec_transfer_params: dict[str, Any] | None = None
    vllm_xargs: dict[str, Any] | None = None
    guided_decoding_backend: str | None = None
    guided_whitespace_pattern: str | None = None


class CompletionRequest(GenerationRequest, kw_only=True):
    """POST /v1/completions."""

    prompt: PromptInput
    suffix: str | None = None
    echo: bool | None = None
    logprobs: Count | None = None
    best_of: Count | None = None
    prompt_embeds: str | list[Any] | None = None


class ChatRequest(GenerationRequest, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[dict[str, Any]]
    max_completion_tokens: Count | None = None
    logprobs: bool | None = None
    top_logprobs: Count | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    functions: list[dict[str, Any]] | None = None
    function_call: str | dict[str, Any] | None = None
    reasoning_effort: str | None = None
    reasoning: ReasoningInput | None = None
    include_reasoning: bool | None = None
    modalities: list[str] | None = None
    audio: dict[str, Any] | None = None
    prediction: dict[str, Any] | None = None
    web_search_options: dict[str, Any] | None = None
    echo: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    documents: list[dict[str, Any]] | None = None
    return_prompt_text: bool | None = None
    media_io_kwargs: dict[str, Any] | None = None
    mm_processor_kwargs: dict[str, Any] | None = None


class EmbeddingRequest(msgspec.Struct, kw_only=True):
    """POST /v1/embeddings: OpenAI's fields, then vLLM's."""

    input: PromptInput
    model: str | None = None
    encoding_format: str | None = None
    dimensions: Count | None = None
    user: str | None = None

    truncate_prompt_tokens: Count | None = None
    add_special_tokens: bool | None = None
    normalize: bool | None = None
    priority: Priority | None = None
    request_id: RequestId | None = None
    cache_salt: str | None = None


class TokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /tokenize: a prompt, or the messages of a chat."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool | None = None
    return_token_strs: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None


class DetokenizeRequest(msgspec.Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[Count]

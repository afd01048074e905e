"""Types of the public API and of the engine socket: sampling parameters, sequence specs, deltas, finished outputs.

msgspec structs: they validate themselves, compare by value, and cross the engine socket as they are. No torch and no I/O; all
but the outputs and tallies are immutable.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import msgspec

from streamserve.errors import InvalidParameter, invalid_value
from streamserve.kv_groups import KvGroups
from streamserve.progress import Progress
from streamserve.reasoning_marks import ReasoningMarks

FinishReason = Literal["stop", "length", "abort", "error", "time"]
PoolingKind = Literal["last", "mean"]

MAX_BAD_WORDS = 1024
MAX_TEXT_CHARS = 65536
"""Of all stop strings, or all bad words, of one request: more would delay other requests."""

SMALLEST_FLOAT32, LARGEST_FLOAT32 = 2.0**-126, (2 - 2**-23) * 2.0**127
"""The range of a sampling parameter without a bound of its own: on the device it is a float32, 0 or infinite beyond these."""

GREEDY_TEMPERATURE = 1e-5
"""Temperatures below this mean greedy decoding."""


class StructuredOutputs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Constrains the output to a language; exactly one field is set (vLLM's `structured_outputs`)."""

    json: str | dict[str, Any] | None = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    structural_tag: str | dict[str, Any] | None = None

    def __post_init__(self) -> None:
        constraints = [name for name in self.__struct_fields__ if getattr(self, name) is not None]
        if len(constraints) != 1:
            raise InvalidParameter("structured_outputs", f"give exactly one of {', '.join(self.__struct_fields__)}")


class SamplingParams(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How to sample one request; names and meanings are vLLM's `SamplingParams`.

    Raises `InvalidParameter` naming the field when a value is of a wrong type or out of range.
    """

    n: int = 1
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    max_tokens: int | None = 16
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    detokenize: bool = True
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    structured_outputs: StructuredOutputs | None = None
    max_time: float | None = None
    thinking_token_budget: int | None = None

    def __post_init__(self) -> None:
        _check_types(self)
        _check_ranges(self)
        if self.stop_strings and not self.detokenize:
            raise InvalidParameter("stop", "stop strings need detokenize=True")
        if any(not text for text in self.stop_strings):
            raise InvalidParameter("stop", "a stop string can't be empty")
        if any(not word for word in self.bad_words or ()):
            raise InvalidParameter("bad_words", "a bad word can't be empty")
        if len(self.bad_words or ()) > MAX_BAD_WORDS:
            raise InvalidParameter("bad_words", f"must be at most {MAX_BAD_WORDS} words")
        for name, texts in (("stop", self.stop_strings), ("bad_words", self.bad_words or ())):
            if sum(map(len, texts)) > MAX_TEXT_CHARS:
                raise InvalidParameter(name, f"must be at most {MAX_TEXT_CHARS} characters in all")
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise InvalidParameter("allowed_token_ids", "must name at least one token")
        if self.n > 1 and self.is_greedy:
            raise InvalidParameter("n", "must be 1 when temperature is 0: greedy choices would all be the same")

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_TEMPERATURE

    @property
    def stop_strings(self) -> list[str]:
        if self.stop is None:
            return []
        return [self.stop] if isinstance(self.stop, str) else self.stop


_Typed = msgspec.defstruct(
    "_Typed", [(field.name, field.type, None) for field in msgspec.structs.fields(SamplingParams)], kw_only=True
)
"""The same fields without the checks, for msgspec to convert to: a struct's own constructor checks no types."""


def _check_types(params: SamplingParams) -> None:
    """Raise `InvalidParameter` for a wrong type; convert what msgspec can, such as a tuple to a list."""
    values = msgspec.structs.asdict(params)
    try:
        checked = msgspec.convert(values, _Typed)
    except msgspec.ValidationError as error:
        raise invalid_value(str(error)) from None
    for name, value in values.items():
        converted = getattr(checked, name)
        if type(converted) is not type(value):
            msgspec.structs.force_setattr(params, name, converted)


def _check_ranges(params: SamplingParams) -> None:
    for name, low, high in (
        ("n", 1, 128),
        ("presence_penalty", -2.0, 2.0),
        ("frequency_penalty", -2.0, 2.0),
        ("temperature", 0.0, LARGEST_FLOAT32),
        ("repetition_penalty", SMALLEST_FLOAT32, LARGEST_FLOAT32),
        ("min_p", 0.0, 1.0),
        ("top_k", -1, math.inf),
        ("min_tokens", 0, math.inf),
        ("max_tokens", 1, math.inf),
        ("logprobs", -1, math.inf),
        ("prompt_logprobs", -1, math.inf),
        ("truncate_prompt_tokens", 1, math.inf),
        ("thinking_token_budget", -1, math.inf),
    ):
        value = getattr(params, name)
        if value is not None and not low <= value <= high:
            bounds = f"at least {low:g}" if high == math.inf else f"between {low:g} and {high:g}"
            raise InvalidParameter(name, f"must be {bounds}, got {value}")
    if not SMALLEST_FLOAT32 <= params.top_p <= 1.0:
        raise InvalidParameter("top_p", f"must be in (0, 1], got {params.top_p}")
    if params.max_time is not None and not params.max_time > 0:
        raise InvalidParameter("max_time", f"must be above 0 seconds, got {params.max_time}")
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        raise InvalidParameter("min_tokens", f"must not exceed max_tokens ({params.max_tokens}), got {params.min_tokens}")
    for token_id, bias in (params.logit_bias or {}).items():
        if not -100.0 <= bias <= 100.0:
            raise InvalidParameter("logit_bias", f"must be between -100 and 100, got {bias} for token {token_id}")


class Sampling(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the tokens of one sequence are sampled: `SamplingParams` as the engine takes them, every default resolved.

    seed                 0 <= seed < 2**63; sampling is keyed by (seed, position)
    top_k                0 when off
    min_tokens           generated tokens before which no id of `stop_token_ids` may be sampled
    stop_token_ids       end the sequence; contains the end-of-sequence ids unless `ignore_eos`
    bad_words_token_ids  token sequences that must not appear
    logprobs             how many alternatives to report beside the sampled token's own; None for no logprobs
    prompt_logprobs      the same for the prompt's tokens
    """

    seed: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    stop_token_ids: list[int] = []
    bad_words_token_ids: list[list[int]] = []
    logit_bias: dict[int, float] = {}
    allowed_token_ids: list[int] | None = None
    logprobs: int | None = None
    prompt_logprobs: int | None = None

    @property
    def banned_token_ids(self) -> list[int]:
        """The bad words of one token, which are excluded everywhere."""
        return [word[0] for word in self.bad_words_token_ids if len(word) == 1]


class Tenant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whom requests and what they leave behind belong to: everyone who sends the same API key.

    name    of the key, unique on a server; empty where it asks for none
    weight  its share of steps, rows and blocks, relative to those of other tenants that want some
    max_concurrency      requests that it may have at a time; None for no limit, as below
    max_queue_share      the part of the queue's places, and of its tokens, that it may fill
    requests_per_minute  that it may send
    tokens_per_minute    of prompts and outputs; those of an output count once it has ended
    """

    name: str = ""
    weight: float = 1.0
    max_concurrency: int | None = None
    max_queue_share: float = 1.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def divided(self, num_engines: int) -> Tenant:
        """The tenant as each of several engines is to take it: with an equal part of its limits, at least one request."""
        concurrency, requests, tokens = self.max_concurrency, self.requests_per_minute, self.tokens_per_minute
        return msgspec.structs.replace(
            self,
            max_concurrency=None if concurrency is None else math.ceil(concurrency / num_engines),
            requests_per_minute=None if requests is None else requests / num_engines,
            tokens_per_minute=None if tokens is None else tokens / num_engines,
        )


ANYONE = Tenant()
"""Who sends requests to a server without keys."""


class Pooling(msgspec.Struct, frozen=True, array_like=True):
    """How the hidden states of a prompt, behind the model's last norm, become one vector.

    kind        "last": that of the last token; "mean": the mean of all
    normalize   whether the vector is scaled to length 1
    dimensions  how many of its numbers are kept, the first ones, before it is scaled; None for all
    """

    kind: PoolingKind = "last"
    normalize: bool = True
    dimensions: int | None = None


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to make one prompt's embedding; names and meanings are vLLM's `PoolingParams`, None for the model's own way."""

    dimensions: int | None = None
    normalize: bool | None = None
    truncate_prompt_tokens: int | None = None


class SequenceSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One sequence as the engine admits it: tokens only, every default resolved.

    All that is needed to continue the sequence elsewhere: with `generated_token_ids` set, generation continues after them.

    sequence_id          unique in the engine while the sequence lives
    max_tokens           resolved: at least 1, and prompt + max_tokens fits max_model_len
    structured_outputs   what the text must conform to; the engine compiles it
    priority             lower runs first, under the priority policy
    cache_salt           sequences share cached prefixes only with the same salt
    max_time_s           seconds from admission after which the sequence ends with reason "time"
    reasoning            how its reasoning is told and ended; None where it has none, or can't be told
    reasoning_budget     tokens after which reasoning is ended; None for no limit
    tenant               whom it belongs to
    reports_progress     whether its place in the queue and the progress of its prompt are reported, until its first token
    pooling              the sequence is a prompt of which a vector is made, and generates nothing; None for one that generates
    """

    sequence_id: str
    prompt_token_ids: list[int]
    max_tokens: int
    sampling: Sampling
    generated_token_ids: list[int] = []
    structured_outputs: StructuredOutputs | None = None
    priority: int = 0
    cache_salt: str = ""
    max_time_s: float | None = None
    reasoning: ReasoningMarks | None = None
    reasoning_budget: int | None = None
    tenant: Tenant = ANYONE
    reports_progress: bool = False
    pooling: Pooling | None = None


class TokenLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """Log-probabilities at one position, of the raw logits (before penalties and temperature), as vLLM reports them.

    rank     1 for the most likely token
    top      (token id, logprob) of the most likely ones, best first; not necessarily containing `token_id`
    """

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


class ErrorInfo(msgspec.Struct, frozen=True, array_like=True):
    """A `StreamserveError` on the engine socket: its code and message, and when to try again, where it says so."""

    code: str
    message: str
    retry_after_s: float | None = None


class TokenDelta(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The new tokens of one sequence since the last delta; deltas of one sequence concatenate.

    token_ids        new tokens; may be empty on the last delta
    logprobs         one entry per new token when requested
    prompt_logprobs  on the first delta when requested; entry 0 is None (nothing precedes the first token)
    finish_reason    set exactly once, on the last delta
    stop_reason      the stop token id that ended it, None when that was end-of-sequence or no token
    cached_tokens    prompt tokens taken from the prefix cache, on the first delta
    error            set with finish_reason "error"
    queue_s          seconds between admission to the queue and the first step, on the first delta
    progress         before and on the first delta, for sequences that report it
    embedding        what pooling made of a prompt, float32, on its only delta
    """

    token_ids: list[int]
    logprobs: list[TokenLogprobs] | None = None
    prompt_logprobs: list[TokenLogprobs | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | None = None
    cached_tokens: int = 0
    error: ErrorInfo | None = None
    queue_s: float | None = None
    progress: Progress | None = None
    embedding: bytes | None = None

    @property
    def is_single_token(self) -> bool:
        """Whether it holds one token and nothing else, as nearly all deltas in the middle of a sequence do."""
        return (
            len(self.token_ids) == 1
            and self.logprobs is None
            and self.finish_reason is None
            and self.queue_s is None
            and self.prompt_logprobs is None
        )

    @property
    def is_progress_only(self) -> bool:
        """Whether it says no more than how far the sequence is before its first token."""
        return self.progress is not None and not self.token_ids and self.finish_reason is None

    def then(self, later: TokenDelta) -> TokenDelta:
        """This delta followed by `later`, as one: order kept, nothing lost."""
        logprobs = self.logprobs
        if later.logprobs is not None:
            logprobs = (logprobs or []) + later.logprobs
        return TokenDelta(
            token_ids=self.token_ids + later.token_ids,
            logprobs=logprobs,
            prompt_logprobs=self.prompt_logprobs if later.prompt_logprobs is None else later.prompt_logprobs,
            finish_reason=later.finish_reason,
            stop_reason=later.stop_reason,
            cached_tokens=self.cached_tokens or later.cached_tokens,
            error=later.error,
            queue_s=later.queue_s if self.queue_s is None else self.queue_s,
            progress=later.progress or self.progress,
            embedding=later.embedding,
        )


class TextLogprob(msgspec.Struct, frozen=True):
    """One token's log-probability with its text.

    text   the token's bytes as UTF-8, U+FFFD where they are only part of a character
    bytes  the token's true bytes
    rank   1 for the most likely token; None on an alternative whose rank is its place in `top`
    top    the most likely tokens at this position, best first; empty on the alternatives themselves
    """

    token_id: int
    text: str
    bytes: bytes
    logprob: float
    rank: int | None = None
    top: list[TextLogprob] = []


class TextDelta(msgspec.Struct, frozen=True, gc=False):
    """The new text of one choice, of one or more tokens; deltas of one choice concatenate.

    text              never ends inside a character; holds back no more than a stop string could still match
    token_ids         tokens since the last delta; up to a few of them may have their text in the next one
    logprobs          one entry per token when requested
    prompt_logprobs   on the first delta when requested; entry 0 is None
    finish_reason     set exactly once, on the choice's last delta
    stop_reason       the stop token id or stop string that ended it; None when that was end-of-sequence
    cached_tokens     prompt tokens taken from the prefix cache, on the first delta
    error             set with finish_reason "error"
    index             which choice: output index + prompt index * n
    queue_s           seconds between admission to the queue and the first step, on the first delta
    progress          before and on the first delta, where the request asks for it
    embedding         what pooling made of a prompt, float32, on its only delta
    """

    text: str
    token_ids: list[int] = []
    logprobs: list[TextLogprob] | None = None
    prompt_logprobs: Sequence[TextLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    cached_tokens: int = 0
    error: ErrorInfo | None = None
    index: int = 0
    queue_s: float | None = None
    progress: Progress | None = None
    embedding: bytes | None = None

    @property
    def is_progress_only(self) -> bool:
        """Whether it says no more than how far the choice is before its first token."""
        return self.progress is not None and not self.token_ids and self.finish_reason is None


class EngineInfo(msgspec.Struct, frozen=True, kw_only=True):
    """Facts of a loaded engine, which its API side gets once it is ready.

    max_model_len   tokens of prompt and output together
    embedding_size  numbers of a pooled vector
    pooling         how prompts are pooled where a request says nothing
    model_limit     what the model reaches, where it serves less unless more is requested; else None
    num_blocks      KV blocks in total, of `block_size` tokens each
    model_impl      whose layers run: "streamserve" or "transformers"
    kv_cache_dtype  of keys and values, as the flag has it
    windows         of the model's layer groups, as in `KvGroups`
    compiled        whether layers run compiled on a CPU; None where there is nothing to compile
    """

    model: str
    architecture: str
    model_impl: str = "streamserve"
    dtype: str
    kv_cache_dtype: str
    device: str
    max_model_len: int
    vocab_size: int
    num_blocks: int
    block_size: int
    max_num_seqs: int
    windows: tuple[int | None, ...] = (None,)
    compiled: bool | None = None
    model_limit: int | None = None
    embedding_size: int = 0
    pooling: Pooling = Pooling()
    startup_s: dict[str, float] = {}

    @property
    def kv_capacity_tokens(self) -> int:
        """Tokens of sequences of `max_model_len` tokens that fit the cache once their prompts are computed."""
        size = -(-self.max_model_len // self.block_size) * self.block_size
        return self.num_blocks * size // KvGroups(self.block_size, self.windows).blocks_for(self.max_model_len, 1)


class Tally(msgspec.Struct, kw_only=True):
    """Whole numbers observed, by size.

    bounds  ascending
    counts  how many were at most each bound and above the one before it; the last, above all of them
    total   their sum
    """

    bounds: tuple[int, ...]
    counts: list[int]
    total: int = 0

    @classmethod
    def by(cls, *bounds: int) -> Tally:
        """Without an observation."""
        return cls(bounds=bounds, counts=[0] * (len(bounds) + 1))

    def observe(self, value: int) -> None:
        """Count one observation."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value


def step_sizes() -> Tally:
    """An empty tally of tokens per step, with vLLM's bounds."""
    return Tally.by(1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)


def preemption_counts() -> Tally:
    """An empty tally of preemptions per sequence, with vLLM's bounds."""
    return Tally.by(1, 2, 3, 4, 5, 10, 20)


class EngineStats(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshot of the engine for /metrics, /load and logs. Counters are totals since start; names follow vLLM's metrics.

    step_tokens       computed per step
    divided_steps     run in pieces, since the device lacked the memory to run them whole
    ended_preemptions per sequence that has ended
    abort_latency_s   total over `num_aborts`: seconds from a reader's departure until its sequence's blocks are free
    heartbeat_s       age of the step loop's last iteration, 0 while it is idle
    """

    num_requests_running: int = 0
    num_requests_waiting: int = 0
    num_requests_paused: int = 0
    kv_blocks_total: int = 0
    kv_blocks_used: int = 0
    prefix_cache_queries: int = 0
    prefix_cache_hits: int = 0
    num_preemptions: int = 0
    prompt_tokens: int = 0
    generation_tokens: int = 0
    steps: int = 0
    divided_steps: int = 0
    wasted_tokens: int = 0
    tokens_wasted_after_disconnect: int = 0
    step_tokens: Tally = msgspec.field(default_factory=step_sizes)
    ended_preemptions: Tally = msgspec.field(default_factory=preemption_counts)
    num_aborts: int = 0
    abort_latency_s: float = 0.0
    heartbeat_s: float = 0.0


class EngineSnapshot(NamedTuple):
    """What is known of one engine: its facts, and its statistics unless it does not answer."""

    info: EngineInfo
    stats: EngineStats | None


class CompletionOutput(msgspec.Struct, kw_only=True):
    """One finished (or growing) output of a request, as vLLM's `CompletionOutput`."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None


class Logprob(msgspec.Struct, frozen=True):
    """One token's log-probability, its rank (1 is best) and its text."""

    logprob: float
    rank: int | None = None
    decoded_token: str | None = None


class EmbeddingOutput(msgspec.Struct, kw_only=True):
    """The vector of one prompt, as vLLM's `EmbeddingOutput`."""

    embedding: list[float]


class EmbeddingRequestOutput(msgspec.Struct, kw_only=True):
    """What became of one prompt, as vLLM's `EmbeddingRequestOutput`."""

    request_id: str
    outputs: EmbeddingOutput
    prompt_token_ids: list[int]
    finished: bool = True
    num_cached_tokens: int = 0


class RequestOutput(msgspec.Struct, kw_only=True):
    """The outputs of one prompt, as vLLM's `RequestOutput`."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    finished: bool = True
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    num_cached_tokens: int = 0


__all__ = [
    "CompletionOutput",
    "EmbeddingOutput",
    "EmbeddingRequestOutput",
    "EngineInfo",
    "EngineSnapshot",
    "EngineStats",
    "ErrorInfo",
    "FinishReason",
    "Logprob",
    "Pooling",
    "PoolingParams",
    "ReasoningMarks",
    "RequestOutput",
    "Sampling",
    "SamplingParams",
    "SequenceSpec",
    "StructuredOutputs",
    "TextDelta",
    "TextLogprob",
    "TokenDelta",
    "TokenLogprobs",
]

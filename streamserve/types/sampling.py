"""What a request says of sampling, and how the tokens of one sequence are sampled."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from streamserve.errors import InvalidParameter, invalid_value

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

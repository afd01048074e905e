"""Turns a prompt and sampling parameters into sequences that an engine admits: token ids, every default resolved, everything
refused that can be refused beforehand.

Runs on an API event loop, or on a thread when the prompt is long: its only shared state is the tokenizer, which is immutable.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType

from streamserve.errors import ContextLengthExceeded, InvalidParameter, UnsupportedParameter
from streamserve.text.tokenizers.tokenizer import Tokenizer
from streamserve.types import ANYONE, Pooling, ReasoningMarks, Sampling, SamplingParams, SequenceSpec, Tenant

Prompt = str | Sequence[int]
"""A text, or token ids."""

MAX_SEED = 2**63

_VERY_LONG_TEXT = 1 << 18
"""Characters from which a text is refused before tokenising if it can't fit: a megabyte takes a second, and 40 MB."""


def random_seed() -> int:
    """A seed in [0, MAX_SEED), from the system's source of randomness."""
    return secrets.randbelow(MAX_SEED)


@dataclass(frozen=True)
class PreparedPrompt:
    """One prompt, ready to be admitted.

    prompt          the text; None when the prompt was token ids
    specs           one sequence per output: `params.n` of them
    eos_token_ids   the model's end-of-sequence ids, which are not reported as stop reasons
    shown_special_ids  special tokens that have text though special tokens are skipped
    """

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    params: SamplingParams
    specs: list[SequenceSpec]
    eos_token_ids: tuple[int, ...]
    shown_special_ids: frozenset[int] = frozenset()


def num_alternatives(name: str, value: int, *, most: int, vocab_size: int) -> int:
    """How many alternatives a position reports for `value` of parameter `name`, where -1 is every token of the vocabulary.

    most  the largest that is allowed; -1 for no limit

    Raises `InvalidParameter`.
    """
    limit = vocab_size if most == -1 else most
    number = vocab_size if value == -1 else value
    if not 0 <= number <= limit:
        raise InvalidParameter(name, f"must be between 0 and {limit} on this server, got {value}")
    return number


@dataclass(frozen=True)
class Preparation:
    """Prepares the requests of one engine.

    max_model_len   tokens of prompt and output together
    vocab_size      token ids the model knows; it may exceed the tokenizer's
    max_logprobs    the largest `logprobs` and `prompt_logprobs` of a request; -1 for no limit
    next_seed       makes the seeds of requests without one
    """

    tokenizer: Tokenizer
    max_model_len: int
    vocab_size: int
    eos_token_ids: tuple[int, ...] = ()
    max_logprobs: int = 20
    next_seed: Callable[[], int] = random_seed

    def prepare(
        self,
        prompt: Prompt,
        params: SamplingParams,
        *,
        request_id: str,
        add_special_tokens: bool = True,
        priority: int = 0,
        tenant: Tenant = ANYONE,
        cache_salt: str = "",
        clamp_max_tokens: bool = False,
        shown_special_ids: frozenset[int] = frozenset(),
        reasoning: ReasoningMarks | UnsetType | None = UNSET,
        pooling: Pooling | None = None,
        like: PreparedPrompt | None = None,
    ) -> PreparedPrompt:
        """Tokenise and resolve one prompt.

        add_special_tokens  put the model's beginning-of-sequence token in front of a text
        tenant              whom the sequences belong to
        clamp_max_tokens    shorten the output to what fits the context instead of refusing the request
        shown_special_ids   as in `PreparedPrompt`
        reasoning           how the output's reasoning is told and ended; None for an output without any. Where nobody knows,
                            `thinking_token_budget` is refused
        pooling             makes a vector of the prompt, and no output; `params` then only say how to truncate it
        like                another prompt of the request, prepared with the same `params`: their lists are shared

        Raises `InvalidParameter` naming the parameter, or `ContextLengthExceeded`.
        """
        _check_type("sampling_params", params, SamplingParams)
        _check_type("request_id", request_id, str)
        _check_type("priority", priority, int)
        _check_type("cache_salt", cache_salt, str)
        sampling = self._resolve(params) if like is None else like.specs[0].sampling
        if params.truncate_prompt_tokens is None:
            self.check_length(prompt)
        token_ids = self._tokenise(prompt, params.truncate_prompt_tokens or 0, add_special_tokens)
        if pooling is not None and len(token_ids) > self.max_model_len:
            raise self._too_long(len(token_ids), None)
        # -1, as in vLLM, for no limit.
        budget = None if params.thinking_token_budget == -1 else params.thinking_token_budget
        if budget is not None and reasoning is UNSET:
            raise UnsupportedParameter("thinking_token_budget", "it is for chats with models that are known to reason")
        marks = reasoning or None
        max_tokens = 1 if pooling is not None else self._max_tokens(len(token_ids), params, clamp_max_tokens)
        first_seed = self.next_seed() if params.seed is None else params.seed
        common = SequenceSpec(
            sequence_id=request_id,
            prompt_token_ids=token_ids,
            max_tokens=max_tokens,
            sampling=msgspec.structs.replace(sampling, seed=first_seed % MAX_SEED),
            structured_outputs=params.structured_outputs,
            priority=priority,
            tenant=tenant,
            cache_salt=cache_salt,
            max_time_s=params.max_time,
            reasoning=self._endable(marks, sampling, budget),
            reasoning_budget=None if marks is None else budget,
            pooling=pooling,
        )
        text = str(prompt) if isinstance(prompt, str) else None
        specs = _outputs(common, params.n)
        return PreparedPrompt(request_id, text, token_ids, params, specs, self.eos_token_ids, shown_special_ids)

    def _resolve(self, params: SamplingParams) -> Sampling:
        """The parameters as the engine takes them, but for the seed. Raises `InvalidParameter`."""
        self._check_ids(params)
        sampling = Sampling(
            seed=0,
            temperature=params.temperature,
            top_p=params.top_p,
            top_k=max(params.top_k, 0),
            min_p=params.min_p,
            presence_penalty=params.presence_penalty,
            frequency_penalty=params.frequency_penalty,
            repetition_penalty=params.repetition_penalty,
            min_tokens=params.min_tokens,
            stop_token_ids=self._stop_ids(params),
            bad_words_token_ids=self._bad_words(params),
            logit_bias=params.logit_bias or {},
            allowed_token_ids=None if params.allowed_token_ids is None else sorted(set(params.allowed_token_ids)),
            logprobs=self._num_alternatives("logprobs", params.logprobs),
            prompt_logprobs=self._num_alternatives("prompt_logprobs", params.prompt_logprobs),
        )
        _require_choice(sampling)
        return sampling

    def _endable(self, marks: ReasoningMarks | None, sampling: Sampling, budget: int | None) -> ReasoningMarks | None:
        """The marks, if the tokens that end reasoning can be sampled. Raises `InvalidParameter` when a budget needs them."""
        if marks is None or all(any(self._can_sample(token_id, sampling) for token_id in ids) for ids in marks.ending):
            return marks
        if budget is not None:
            raise InvalidParameter(
                "thinking_token_budget", "needs the tokens that end reasoning, which other parameters exclude"
            )
        return None

    def _can_sample(self, token_id: int, sampling: Sampling) -> bool:
        """Whether a token may stand anywhere in the output."""
        allowed = sampling.allowed_token_ids
        return (
            token_id < self.vocab_size
            and (allowed is None or token_id in allowed)
            and not any(word[-1] == token_id for word in sampling.bad_words_token_ids)
            and not (sampling.min_tokens and token_id in sampling.stop_token_ids)
        )

    def check_length(self, prompt: Prompt) -> None:
        """Refuse ids that don't fit, and a text that could not if it were made of the longest tokens.

        Raises `ContextLengthExceeded`.
        """
        tokenizer = self.tokenizer
        if not isinstance(prompt, str):
            if len(prompt) > self.max_model_len:
                raise self._too_long(len(prompt), None)
            return
        if len(prompt) < _VERY_LONG_TEXT or not tokenizer.has_true_bytes:
            return
        least = len(prompt) // max(1, tokenizer.longest_token_bytes)
        if least > self.max_model_len:
            raise ContextLengthExceeded(
                f"This model's maximum context length is {self.max_model_len} tokens. However, your prompt of {len(prompt)} "
                f"characters makes at least {least}. Please reduce its length.",
                param="prompt",
            )

    def _tokenise(self, prompt: Prompt, last: int, add_special_tokens: bool) -> list[int]:
        """last  how many of the tokens to keep; 0 for all"""
        if isinstance(prompt, str):
            try:
                token_ids = self.tokenizer.encode(prompt, add_special_tokens=add_special_tokens)
            except UnicodeEncodeError as error:
                raise InvalidParameter("prompt", "is not valid Unicode: it holds half of a surrogate pair") from error
            token_ids = token_ids[-last:]
            self._check_embedded(token_ids)
        else:
            token_ids = list(prompt[-last:])
            self._check_range("prompt", token_ids)
        if not token_ids:
            raise InvalidParameter("prompt", "must hold at least one token")
        return token_ids

    def _max_tokens(self, num_prompt_tokens: int, params: SamplingParams, clamp: bool) -> int:
        left = self.max_model_len - num_prompt_tokens
        requested = params.max_tokens
        if left < 1 or (requested is not None and requested > left and not clamp):
            raise self._too_long(num_prompt_tokens, requested)
        max_tokens = left if requested is None else min(requested, left)
        if params.min_tokens > max_tokens and not clamp:
            raise InvalidParameter("min_tokens", f"must not exceed the {max_tokens} tokens left, got {params.min_tokens}")
        return max_tokens

    def _too_long(self, num_prompt_tokens: int, requested: int | None) -> ContextLengthExceeded:
        total = num_prompt_tokens + (requested or 0)
        return ContextLengthExceeded(
            f"This model's maximum context length is {self.max_model_len} tokens. However, you requested {total} tokens "
            f"({num_prompt_tokens} in the prompt, {requested or 0} in the completion). Please reduce the length of the "
            "prompt or of the completion.",
            param="prompt" if num_prompt_tokens >= self.max_model_len else "max_tokens",
        )

    def _stop_ids(self, params: SamplingParams) -> list[int]:
        ends = () if params.ignore_eos else self.eos_token_ids
        return sorted({*ends, *(params.stop_token_ids or ())})

    def _bad_words(self, params: SamplingParams) -> list[list[int]]:
        """Token sequences that spell a bad word, at the start of a text and after a space, less those never sampled anyway."""
        found: dict[tuple[int, ...], None] = {}
        for word in params.bad_words or ():
            for text in (word.lstrip(" "), " " + word.lstrip(" ")):
                token_ids = self.tokenizer.encode(text, add_special_tokens=False)
                if token_ids and max(token_ids) < self.vocab_size:
                    found[tuple(token_ids)] = None
        return [list(token_ids) for token_ids in found]

    def _check_ids(self, params: SamplingParams) -> None:
        for name in ("stop_token_ids", "allowed_token_ids", "logit_bias"):
            token_ids = getattr(params, name) or ()
            if len(token_ids) > self.vocab_size:
                raise InvalidParameter(name, f"names {len(token_ids)} tokens; this model has {self.vocab_size}")
            self._check_range(name, token_ids)

    def _num_alternatives(self, name: str, value: int | None) -> int | None:
        return None if value is None else num_alternatives(name, value, most=self.max_logprobs, vocab_size=self.vocab_size)

    def _check_embedded(self, token_ids: list[int]) -> None:
        """Refuse tokens that the tokenizer makes and the model has no embedding of, as some fine-tuned models' do."""
        if (token_id := self.unembedded(token_ids)) is not None:
            raise InvalidParameter(
                "prompt",
                f"holds {self.tokenizer.vocabulary.token(token_id)!r}, a token (id {token_id}) that the tokenizer knows and "
                f"this model, with embeddings of {self.vocab_size} tokens, does not",
            )

    def unembedded(self, token_ids: Collection[int]) -> int | None:
        """A token that the model has no embedding of, if there is one among them."""
        largest = max(token_ids, default=0)
        return largest if largest >= self.vocab_size else None

    def _check_range(self, name: str, token_ids: Collection[Any]) -> None:
        if set(map(type, token_ids)) <= {int} and (not token_ids or 0 <= min(token_ids) <= max(token_ids) < self.vocab_size):
            return
        for token_id in token_ids:
            if isinstance(token_id, bool) or not isinstance(token_id, int) or not 0 <= token_id < self.vocab_size:
                raise InvalidParameter(name, f"token ids must be integers from 0 to {self.vocab_size - 1}, got {token_id!r}")


def _require_choice(sampling: Sampling) -> None:
    """Raise `InvalidParameter` when `allowed_token_ids` names only tokens that other parameters exclude."""
    left = set(sampling.allowed_token_ids or ())
    for name, excluded in (
        ("bad_words", sampling.banned_token_ids),
        ("min_tokens", sampling.stop_token_ids if sampling.min_tokens else []),
    ):
        if left and not (left := left.difference(excluded)):
            raise InvalidParameter("allowed_token_ids", f"names only tokens that {name} excludes")


def _check_type(name: str, value: object, kind: type) -> None:
    if not isinstance(value, kind):
        raise InvalidParameter(name, f"expected {kind.__name__}, got {type(value).__name__}")


def _outputs(common: SequenceSpec, num_outputs: int) -> list[SequenceSpec]:
    """One sequence per output, each with a seed of its own: the request's plus its index."""
    sampling = common.sampling
    return [
        msgspec.structs.replace(
            common,
            sequence_id=f"{common.sequence_id}-{index}",
            sampling=msgspec.structs.replace(sampling, seed=(sampling.seed + index) % MAX_SEED),
        )
        for index in range(num_outputs)
    ]

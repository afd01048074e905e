"""Log-probabilities as the OpenAI API writes them: the parallel arrays of completions, the objects of chat.

`bytes` are a token's true bytes; its text shows U+FFFD where the token ends inside a character. Pure functions, but for the
running text offset of a completions choice.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import orjson

from streamserve.types import TextLogprob

T = TypeVar("T")

SLICE = 256
"""Tokens whose log-probabilities are encoded at a time: no thread can be interrupted in that."""

LOWEST = -9999.0
"""JSON has no infinity: a token that can't be sampled is reported with this."""


def finite(logprob: float) -> float:
    """The log-probability, at least `LOWEST`; NaN becomes it too."""
    return logprob if logprob > LOWEST else LOWEST


class TokenNames:
    """How tokens are written in answers: their text, or "token_id:<id>" when the request wants it so."""

    def __init__(self, *, as_token_ids: bool = False) -> None:
        self._as_token_ids = as_token_ids

    def name(self, token: TextLogprob) -> str:
        return f"token_id:{token.token_id}" if self._as_token_ids else token.text


class LogprobArrays:
    """The `logprobs` of one completions choice; `text_offset` runs on over the chunks of a stream.

    top         how many alternatives to list beside the token itself
    hidden_ids  special tokens that have no part in the text
    """

    def __init__(self, names: TokenNames, top: int, *, hidden_ids: frozenset[int] = frozenset()) -> None:
        self._hidden_ids = hidden_ids
        self._names = names
        self._top = top
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._offset = 0

    def of(self, tokens: Sequence[TextLogprob]) -> dict[str, Any]:
        return {
            "text_offset": [self._advance(token) for token in tokens],
            "token_logprobs": [finite(token.logprob) for token in tokens],
            "tokens": [self._names.name(token) for token in tokens],
            "top_logprobs": [self._alternatives(token) for token in tokens],
        }

    def of_first(self, token: TextLogprob) -> dict[str, Any]:
        """As `of`, for a prompt's first token, which has no logprobs: nothing precedes it."""
        arrays = self.of([token])
        arrays["token_logprobs"][0] = None
        arrays["top_logprobs"][0] = None
        return arrays

    def of_rest(self, tokens: Sequence[TextLogprob | None]) -> dict[str, Any]:
        """As `of`, for a prompt's tokens; its first, which is None among them, comes before with `of_first`."""
        return self.of([token for token in tokens if token is not None])

    def _advance(self, token: TextLogprob) -> int:
        offset = self._offset
        if token.token_id not in self._hidden_ids:
            self._offset += len(self._decoder.decode(token.bytes))
        return offset

    def _alternatives(self, token: TextLogprob) -> dict[str, float]:
        alternatives: dict[str, float] = {}
        for candidate in [*token.top[: self._top], token]:
            alternatives.setdefault(self._names.name(candidate), finite(candidate.logprob))
        return alternatives


def slices(tokens: Sequence[T]) -> Iterator[Sequence[T]]:
    """Tokens few at a time; one empty slice of none."""
    for start in range(0, len(tokens) or 1, SLICE):
        yield tokens[start : start + SLICE]


def encoded(parts: Iterable[Mapping[str, Sequence[Any]]]) -> dict[str, orjson.Fragment]:
    """Arrays that come in parts, by name: each part is encoded, and dropped, before the next one is made."""
    arrays: dict[str, list[bytes]] = {}
    for part in parts:
        for name, values in part.items():
            pieces = arrays.setdefault(name, [])
            if values:
                pieces.append(orjson.dumps(values)[1:-1])
    return {name: orjson.Fragment(b"[%b]" % b",".join(pieces)) for name, pieces in arrays.items()}


def chat_logprobs(names: TokenNames, tokens: Sequence[TextLogprob], top: int) -> dict[str, Any]:
    """`{"content": [...]}` with one object per token and its `top` likeliest alternatives."""
    return {
        "content": [
            {**_chat_token(names, token), "top_logprobs": [_chat_token(names, other) for other in token.top[:top]]}
            for token in tokens
        ]
    }


def _chat_token(names: TokenNames, token: TextLogprob) -> dict[str, Any]:
    return {"token": names.name(token), "logprob": finite(token.logprob), "bytes": list(token.bytes)}


def prompt_logprobs(names: TokenNames, tokens: Sequence[TextLogprob | None]) -> list[dict[str, Any] | None]:
    """vLLM's `prompt_logprobs`: per position a map from token id to logprob, rank and text; null for the first."""
    return [None if token is None else _ranked(names, token) for token in tokens]


def _ranked(names: TokenNames, token: TextLogprob) -> dict[str, Any]:
    ranked = {str(other.token_id): _rank(names, other, rank) for rank, other in enumerate(token.top, start=1)}
    ranked.setdefault(str(token.token_id), _rank(names, token, token.rank))
    return ranked


def _rank(names: TokenNames, token: TextLogprob, rank: int | None) -> dict[str, Any]:
    return {"logprob": finite(token.logprob), "rank": rank, "decoded_token": names.name(token)}

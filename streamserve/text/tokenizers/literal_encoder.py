"""Encodes texts in parts of which special tokens are plain text.

A second tokenizer over the same model, normalizer and pre-tokenizer (they are shared, not copied) knows the special tokens by
secret names instead of their texts. Written in those names, the special tokens that count are found and the others are text
like any other, and the whole is encoded at once: words and blanks next to them come out as ever.
"""

from __future__ import annotations

import re
import secrets

import tokenizers
from tokenizers import AddedToken

from streamserve.text.rendered_text import RenderedText


class LiteralEncoder:
    """Encodes `RenderedText` with a tokenizer of the `tokenizers` library."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._encoder = tokenizers.Tokenizer(backend.model)
        if backend.normalizer is not None:
            self._encoder.normalizer = backend.normalizer
        if backend.pre_tokenizer is not None:
            self._encoder.pre_tokenizer = backend.pre_tokenizer
        if backend.post_processor is not None:
            self._encoder.post_processor = backend.post_processor
        added = sorted(backend.get_added_tokens_decoder().items())
        key = secrets.token_hex(8)
        names = {token_id: _secret(f"{key}{token_id}") if token.special else token.content for token_id, token in added}
        self._special_ids = frozenset(token_id for token_id, token in added if token.special)
        self._names = {token.content: names[token_id] for token_id, token in added}
        self._found = re.compile("|".join(map(re.escape, sorted(self._names, key=len, reverse=True))) or "(?!)")
        self._encoder.add_tokens([_renamed(token, names[token_id]) for token_id, token in added])
        self._split = _secret(f"{key}split")
        self._encoder.add_tokens([AddedToken(self._split, normalized=False)])
        self._ids: dict[int, int | None] = {self._id(name): token_id for token_id, name in names.items()}
        self._ids[self._id(self._split)] = None

    def encode(self, text: RenderedText, add_special_tokens: bool) -> list[int]:
        """Token ids, in which special tokens of literals are spelled out."""
        pieces = [(piece if is_literal else self._in_secret(piece), is_literal) for piece, is_literal in text.pieces()]
        ids = self._encoded("".join(piece for piece, _ in pieces), add_special_tokens)
        if ids is None:  # The model itself knows a special token's text as one word: cut these words.
            cut = [self._cut(piece) if is_literal else piece for piece, is_literal in pieces]
            ids = self._encoded("".join(cut), add_special_tokens)
        return ids or []

    def _encoded(self, text: str, add_special_tokens: bool) -> list[int] | None:
        """Ids in the tokenizer's own numbers; None when the model made a special token of a text."""
        encoding = self._encoder.encode(text, add_special_tokens=add_special_tokens)
        ids: list[int] = []
        for token_id, is_processors in zip(encoding.ids, encoding.special_tokens_mask, strict=True):
            if is_processors:
                ids.append(token_id)
            elif token_id in self._ids:
                known = self._ids[token_id]
                ids += [] if known is None else [known]
            elif token_id in self._special_ids:
                return None
            else:
                ids.append(token_id)
        return ids

    def _in_secret(self, text: str) -> str:
        return self._found.sub(lambda found: self._names[found[0]], text)

    def _cut(self, literal: str) -> str:
        return literal[:1] + self._split + literal[1:]

    def _id(self, name: str) -> int:
        token_id = self._encoder.token_to_id(name)
        assert token_id is not None
        return token_id


def _secret(name: str) -> str:
    """A token that no client can write: in private characters, which no normalizer changes, around what can't be guessed."""
    return f"\U000f0000{name}\U000f0001"


def _renamed(token: AddedToken, name: str) -> AddedToken:
    # Not special: that flag only decides what decoding skips.
    flags = {flag: getattr(token, flag) for flag in ("lstrip", "rstrip", "single_word", "normalized")}
    return AddedToken(name, **flags)

"""Decodes token ids to text incrementally.

One detokenizer per sequence, on its reader's event loop. Its texts, joined, are the text that decoding all ids at once gives;
it never returns part of a character, and U+FFFD only where no later token could still complete one. Constant work per token,
however long the sequence. Knows neither stop strings nor streams.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Protocol

from streamserve.text.tokenizers.tokenizer import Tokenizer, strip_spaces

_REPLACEMENT = "\ufffd"
_LONGEST_CHARACTER = 4
_UTF8 = codecs.getincrementaldecoder("utf-8")


class Detokenizer(Protocol):
    """Decodes one sequence."""

    def push(self, token_id: int) -> str:
        """The text that is complete with this token; often "" inside a character."""
        ...

    def finish(self) -> str:
        """The rest at the end of the sequence: U+FFFD for a character that was never completed, else ""."""
        ...


def detokenizer_for(
    tokenizer: Tokenizer,
    prompt_token_ids: Sequence[int],
    *,
    skip_special_tokens: bool = True,
    shown_special_ids: frozenset[int] = frozenset(),
    spaces_between_special_tokens: bool = True,
) -> Detokenizer:
    """A detokenizer for the tokens after a prompt.

    skip_special_tokens            special tokens have no text
    shown_special_ids              but for these
    spaces_between_special_tokens  False: special tokens in a row are joined without the spaces that some decoders put
                                   between all tokens; byte-level and sentencepiece vocabularies never have any

    A prompt that ends inside a character (only one of token ids can) contributes its last bytes: tokens that complete the
    character return it whole. If the first text doesn't complete it, it stays with the prompt.
    """
    skipped = tokenizer.special_ids - shown_special_ids if skip_special_tokens else frozenset()
    if tokenizer.has_true_bytes:
        return ByteDetokenizer(tokenizer, prompt_token_ids, skipped)
    joined = frozenset() if spaces_between_special_tokens or skip_special_tokens else tokenizer.special_ids
    return WindowDetokenizer(tokenizer, prompt_token_ids, skipped, joined)


class ByteDetokenizer:
    """For vocabularies whose tokens are bytes: a UTF-8 decoder fed token by token."""

    __slots__ = ("_decoder", "_is_inside", "_prompt_tail", "_skipped", "_strip", "_token_bytes", "_whole_text")

    def __init__(self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skipped: frozenset[int]) -> None:
        self._token_bytes = tokenizer.token_bytes
        self._whole_text = tokenizer.whole_text
        self._skipped = skipped
        self._decoder = _UTF8("replace")
        end = _last_bytes(tokenizer, prompt_token_ids, skipped)
        self._strip = 0 if end else tokenizer.stripped_spaces
        self._decoder.decode(end)
        self._prompt_tail: bytes = self._decoder.getstate()[0]
        self._is_inside = bool(self._prompt_tail)

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        text = None if self._is_inside else self._whole_text(token_id)
        if text is None:
            text = self._decode(token_id)
        return self._stripped(text) if self._strip and text else text

    def finish(self) -> str:
        return "" if self._prompt_tail else self._decoder.decode(b"", True)

    def _decode(self, token_id: int) -> str:
        """The slower path, for tokens that begin, end or continue inside a character."""
        data = self._token_bytes(token_id)
        if self._prompt_tail and data:
            self._leave_prompt(data)
        text = self._decoder.decode(data)
        self._is_inside = bool(self._prompt_tail or self._decoder.getstate()[0])
        return text

    def _leave_prompt(self, data: bytes) -> None:
        """Drop the prompt's last bytes unless the first bytes after it continue its last character."""
        tail, self._prompt_tail = self._prompt_tail, b""
        try:
            _UTF8("strict").decode(tail + data[:1])
        except UnicodeDecodeError:
            self._decoder.reset()

    def _stripped(self, text: str) -> str:
        shown = strip_spaces(text, self._strip)
        self._strip = 0 if shown else self._strip - len(text)
        return shown


class WindowDetokenizer:
    """For opaque decoders: decodes a short window of tokens with and without the new ones, and returns the difference.

    Text is taken as final when it doesn't end in U+FFFD, and at the latest after as many tokens as a character has bytes,
    so the window never grows.
    """

    __slots__ = ("_decode", "_done", "_joined", "_pending", "_skipped", "_token_text")

    def __init__(
        self, tokenizer: Tokenizer, prompt_token_ids: Sequence[int], skipped: frozenset[int], joined: frozenset[int]
    ) -> None:
        self._decode = tokenizer.vocabulary.decode
        self._token_text = tokenizer.token_text
        self._skipped = skipped
        self._joined = joined
        self._done = [token_id for token_id in prompt_token_ids[-2 * _LONGEST_CHARACTER :] if token_id not in skipped]
        self._pending: list[int] = []

    def push(self, token_id: int) -> str:
        if token_id in self._skipped:
            return ""
        if token_id in self._joined and self._done and self._done[-1] in self._joined and not self._pending:
            self._done.append(token_id)
            return self._token_text(token_id)
        self._pending.append(token_id)
        text = self._new_text()
        if text.endswith(_REPLACEMENT) and len(self._pending) < _LONGEST_CHARACTER:
            return ""
        self._advance()
        return text

    def finish(self) -> str:
        text = self._new_text() if self._pending else ""
        self._advance()
        return text

    def _new_text(self) -> str:
        before = self._decode(self._done) if self._done else ""
        return self._decode(self._done + self._pending)[len(before) :]

    def _advance(self) -> None:
        self._done = (self._done + self._pending)[-2 * _LONGEST_CHARACTER :]
        self._pending = []


def _last_bytes(tokenizer: Tokenizer, token_ids: Sequence[int], skipped: frozenset[int]) -> bytes:
    """The last bytes of a text, at least as many as a character may have unless the text is shorter."""
    end = b""
    for token_id in reversed(token_ids):
        if len(end) >= _LONGEST_CHARACTER:
            break
        if token_id not in skipped:
            end = tokenizer.token_bytes(token_id) + end
    return end

"""The interface of a tokenizer library, and the `tokenizers` library behind it.

A vocabulary maps text to ids and ids to entries; it knows nothing of templates, streams or checkpoints.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from typing import Protocol

import tokenizers

from streamserve.text.rendered_text import RenderedText
from streamserve.text.tokenizers.literal_encoder import LiteralEncoder
from streamserve.text.tokenizers.token_codec import TokenCodec, codec_for


class Vocabulary(Protocol):
    """A vocabulary and its encoder, as a `Tokenizer` uses them."""

    @property
    def size(self) -> int:
        """One more than the largest token id."""
        ...

    @property
    def special_ids(self) -> frozenset[int]: ...

    @property
    def special_texts(self) -> frozenset[str]:
        """The texts that `encode` reads as special tokens."""
        ...

    @property
    def codec(self) -> TokenCodec | None:
        """How tokens become bytes; None when only whole sequences can be decoded."""
        ...

    def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]: ...

    def encode_rendered(self, text: RenderedText, add_special_tokens: bool) -> list[int]:
        """Token ids of a text in whose literals special tokens are plain text."""
        ...

    def decode(self, token_ids: Sequence[int]) -> str: ...

    def token(self, token_id: int) -> str | None:
        """The vocabulary's entry, as it is written there; None for an id without one."""
        ...

    def token_id(self, token: str) -> int | None: ...


class FastVocabulary:
    """A vocabulary of the `tokenizers` library."""

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        added = backend.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self.special_texts = frozenset(token.content for token in added.values() if token.special)
        self.size = max(backend.get_vocab_size(with_added_tokens=True), 1 + max(added, default=-1))
        decoder = backend.decoder
        self.codec = codec_for(None if decoder is None else json.loads(decoder.__getstate__()))

    def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def encode_rendered(self, text: RenderedText, add_special_tokens: bool) -> list[int]:
        return self._literal_encoder.encode(text, add_special_tokens)

    @cached_property
    def _literal_encoder(self) -> LiteralEncoder:
        return LiteralEncoder(self.backend)

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.backend.decode(list(token_ids), skip_special_tokens=False)

    def token(self, token_id: int) -> str | None:
        return self.backend.id_to_token(token_id) if 0 <= token_id < 1 << 32 else None

    def token_id(self, token: str) -> int | None:
        return self.backend.token_to_id(token)

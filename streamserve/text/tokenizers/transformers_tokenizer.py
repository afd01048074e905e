"""Tokenizers that only transformers can load: folders without tokenizer.json, and remote code.

Importing this module imports transformers (seconds); `loading` does so only for these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

from streamserve.errors import ConfigError
from streamserve.text.rendered_text import RenderedText
from streamserve.text.tokenizers.vocabulary import FastVocabulary, Vocabulary


def load_with_transformers(path: Path, trust_remote_code: bool) -> tuple[Vocabulary, dict[str, str]]:
    """The vocabulary and the special tokens by role. Raises `ConfigError` when transformers finds no tokenizer it may load."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError, ImportError, KeyError, AttributeError) as error:
        raise ConfigError(f"{path}: no tokenizer could be loaded ({error}); name one with --tokenizer") from error
    special = {role: str(token) for role, token in tokenizer.special_tokens_map.items()}
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return (PythonVocabulary(tokenizer) if backend is None else FastVocabulary(backend)), special


class PythonVocabulary:
    """A tokenizer written in Python: only whole sequences can be decoded."""

    codec = None

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self.size = len(tokenizer)
        self.special_ids = frozenset(tokenizer.all_special_ids)
        self.special_texts = frozenset(map(str, tokenizer.all_special_tokens))

    def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        return [self._tokenizer.encode(text, add_special_tokens=add_special_tokens) for text in texts]

    def encode_rendered(self, text: RenderedText, add_special_tokens: bool) -> list[int]:
        token_ids: list[int] = []
        for piece, is_literal in text.pieces():
            token_ids += self._tokenizer.encode(piece, add_special_tokens=False, split_special_tokens=is_literal)
        return self._tokenizer.build_inputs_with_special_tokens(token_ids) if add_special_tokens else token_ids

    def decode(self, token_ids: Sequence[int]) -> str:
        known = [token_id for token_id in token_ids if 0 <= token_id < self.size]
        return str(self._tokenizer.decode(known, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def token(self, token_id: int) -> str | None:
        token = self._tokenizer.convert_ids_to_tokens(token_id) if 0 <= token_id < self.size else None
        return None if token is None else str(token)

    def token_id(self, token: str) -> int | None:
        token_id = self._tokenizer.convert_tokens_to_ids(token)
        return None if token_id is None else int(token_id)

"""Tokenizers of the kinds that there are."""

from __future__ import annotations

import pytest
from tokenizers import AddedToken, decoders, models
from tokenizers import Tokenizer as Backend

from streamserve.checkpoint.names import resolve
from streamserve.text.loading import TokenizerParts
from streamserve.text.tokenizers.tokenizer import Tokenizer, load_tokenizer
from streamserve.text.tokenizers.vocabulary import FastVocabulary


@pytest.fixture(scope="session")
def demo() -> Tokenizer:
    """The demo model's: byte-level BPE, from GGUF."""
    return load_tokenizer(resolve("demo"))


@pytest.fixture(scope="session")
def sentencepiece() -> Tokenizer:
    """A small sentencepiece-like vocabulary with bytes, word starts and special tokens."""
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    pieces += ["▁", "▁Hello", "Hello", "▁world", "wor", "ld", "▁▁", "你", "好", "é", ",", "."]
    backend = Backend(
        models.BPE({piece: place for place, piece in enumerate(pieces)}, [], unk_token="<unk>", byte_fallback=True)
    )
    backend.add_tokens([AddedToken(token, special=True, normalized=False) for token in pieces[:3]])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(TokenizerParts(FastVocabulary(backend)))


@pytest.fixture(scope="session")
def opaque() -> Tokenizer:
    """A vocabulary whose decoder is no map from tokens to bytes: WordPiece joins with spaces, except before `##`."""
    pieces = ["[UNK]", "[SEP]", "[CLS]", "hello", "world", "##s", "##ly", "你", "好", "a"]
    backend = Backend(models.WordPiece({piece: place for place, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.add_tokens([AddedToken(token, special=True, normalized=False) for token in pieces[:3]])
    backend.decoder = decoders.WordPiece(cleanup=False)
    return Tokenizer(TokenizerParts(FastVocabulary(backend)))

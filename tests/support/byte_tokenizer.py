"""A tokenizer without files: token 0 to 255 are the bytes, 256 ends a sequence.

With it a test can say in text what an engine generates, and see in bytes what arrives.
"""

from __future__ import annotations

from collections.abc import Sequence

from streamserve.text.loading import TokenizerParts
from streamserve.text.rendered_text import RenderedText
from streamserve.text.tokenizers.token_codec import TokenCodec
from streamserve.text.tokenizers.tokenizer import Tokenizer

EOS = 256
VOCAB_SIZE = 257

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}>{{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


class ByteVocabulary:
    """A token for each byte, and one more that ends a text."""

    size = VOCAB_SIZE
    special_ids = frozenset({EOS})
    special_texts: frozenset[str] = frozenset()
    codec = TokenCodec(lambda token: b"</s>" if token == "</s>" else bytes([ord(token)]))

    def encode(self, texts: Sequence[str], add_special_tokens: bool) -> list[list[int]]:
        return [list(text.encode()) for text in texts]

    def encode_rendered(self, text: RenderedText, add_special_tokens: bool) -> list[int]:
        return list(text.encode())

    def decode(self, token_ids: Sequence[int]) -> str:
        return bytes(token_id for token_id in token_ids if token_id < EOS).decode("utf-8", "replace")

    def token(self, token_id: int) -> str | None:
        if token_id == EOS:
            return "</s>"
        return chr(token_id) if 0 <= token_id < EOS else None

    def token_id(self, token: str) -> int | None:
        if token == "</s>":
            return EOS
        return ord(token) if len(token) == 1 else None


def byte_tokenizer() -> Tokenizer:
    return Tokenizer(TokenizerParts(ByteVocabulary(), {"eos_token": "</s>"}, {"default": CHAT_TEMPLATE}))

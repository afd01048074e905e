"""A model's tokenizer: text to token ids and back, and the bytes of each token.

Owns the vocabulary and its special tokens; incremental decoding is the detokenizer's. Used on API event loops and, for long
texts, on threads (encoding releases the interpreter lock). Loads neither torch nor, unless a model needs it, transformers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from streamserve.checkpoint.files import Checkpoint
from streamserve.checkpoint.names import DEMO
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.text.chat_template import ChatMessage, ModelTemplates
from streamserve.text.loading import TokenizerParts, load_parts, locate_tokenizer
from streamserve.text.rendered_text import RenderedText


def load_tokenizer(
    checkpoint: Checkpoint,
    *,
    tokenizer: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    download_dir: str | None = None,
) -> Tokenizer:
    """The checkpoint's tokenizer, or the one that `tokenizer` names: a folder, a .gguf or tokenizer.json file, a Hub id.

    Raises `ConfigError` when there is none or it needs code that is not trusted, `ModelNotSupported` for a GGUF vocabulary
    that is not supported.
    """
    path = checkpoint.path
    if tokenizer is not None:
        path = locate_tokenizer(tokenizer, revision, trust_remote_code, download_dir)
    return Tokenizer(load_parts(path, trust_remote_code))


def tokenizer_of(config: EngineConfig, checkpoint: Checkpoint) -> Tokenizer:
    """The tokenizer of a configuration; as `load_tokenizer`. Another revision of the model's own is downloaded by itself."""
    name = config.tokenizer
    if config.tokenizer_revision is not None:
        name = name or config.model
        if name == DEMO or Path(name).expanduser().exists():
            raise ConfigError(
                f"--tokenizer-revision {config.tokenizer_revision}: only repositories on the Hub have any, "
                f"{name} is on this disk"
            )
    return load_tokenizer(
        checkpoint,
        tokenizer=name,
        revision=config.tokenizer_revision or config.revision,
        trust_remote_code=config.trust_remote_code,
        download_dir=config.download_dir,
    )


class Tokenizer:
    """Text ↔ token ids for one model.

    special_tokens  by role, as templates name them: `bos_token`, `eos_token`, `image_token`, …
    chat_templates  Jinja sources by name; the usual one is "default"
    response_template  how the model's answers are written, where its files say so
    """

    def __init__(self, parts: TokenizerParts) -> None:
        self.vocabulary = parts.vocabulary
        self.special_tokens = parts.special_tokens
        self.chat_templates = parts.chat_templates
        self.response_template = parts.response_template
        self.special_ids = parts.vocabulary.special_ids
        self._codec = parts.vocabulary.codec
        self._bytes: dict[int, bytes] = {}
        self._whole_texts: dict[int, str | None] = {}

    @property
    def vocab_size(self) -> int:
        return self.vocabulary.size

    @property
    def bos_token_id(self) -> int | None:
        return self._role_id("bos_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._role_id("eos_token")

    @property
    def has_true_bytes(self) -> bool:
        """Whether a text's bytes are its tokens' bytes, one after another."""
        return self._codec is not None

    @cached_property
    def longest_token_bytes(self) -> int:
        """The bytes of the longest token. Walks the vocabulary, the first time."""
        return max((len(self.token_bytes(token_id)) for token_id in range(self.vocab_size)), default=0)

    @property
    def stripped_spaces(self) -> int:
        """Spaces that decoding drops from the start of a whole text."""
        return self._codec.stripped_spaces if self._codec is not None else 0

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a text, special tokens written out in it included, but for those in literals of a `RenderedText`.

        Raises `UnicodeEncodeError` on a lone surrogate.
        """
        if isinstance(text, RenderedText):
            text.encode("utf-8")
            return self.vocabulary.encode_rendered(text, add_special_tokens)
        return self.encode_batch([text], add_special_tokens=add_special_tokens)[0]

    def encode_batch(self, texts: Sequence[str], *, add_special_tokens: bool = True) -> list[list[int]]:
        """Token ids of each text; `encode` of many."""
        for text in texts:
            text.encode("utf-8")
        return self.vocabulary.encode(texts, add_special_tokens)

    def apply_chat_template(
        self,
        conversation: Sequence[ChatMessage],
        *,
        tokenize: bool = True,
        chat_template: str | None = None,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        documents: Sequence[Mapping[str, Any]] | None = None,
        sanitize_control_tokens: bool = False,
        **variables: Any,
    ) -> str | list[int]:
        """The prompt of a conversation, as token ids or as text; arguments are those of transformers' tokenizers.

        sanitize_control_tokens  special tokens in the conversation are plain text, as they are to a server

        Raises `ConfigError` when there is no template, otherwise what `ChatTemplate.render` raises.
        """
        kept_out = self.vocabulary.special_texts if sanitize_control_tokens else ()
        templates = ModelTemplates(self.chat_templates, self.special_tokens, chat_template, kept_out)
        template = templates.choose(has_tools=bool(tools))
        if template is None:
            raise ConfigError("this model has no chat template: pass one as chat_template")
        text = template.render(
            conversation,
            tools=tools,
            documents=documents,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            variables=variables,
        )
        return self.encode(text, add_special_tokens=False) if tokenize else text

    def decode(self, token_ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of a whole sequence: its bytes as UTF-8, U+FFFD where they are none; ids without an entry add nothing."""
        shown = [token_id for token_id in token_ids if not (skip_special_tokens and token_id in self.special_ids)]
        if self._codec is None:
            return self.vocabulary.decode(shown)
        text = b"".join(map(self.token_bytes, shown)).decode("utf-8", "replace")
        return strip_spaces(text, self._codec.stripped_spaces)

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes a token adds to a text; empty for an id without an entry."""
        known = self._bytes.get(token_id)
        if known is None:
            known = self._bytes[token_id] = self._compute_bytes(token_id)
        return known

    def token_text(self, token_id: int) -> str:
        """The token's bytes as UTF-8, U+FFFD in place of part of a character."""
        return self.token_bytes(token_id).decode("utf-8", "replace")

    def whole_text(self, token_id: int) -> str | None:
        """The token's text when its bytes are whole characters; None when they begin or end inside of one."""
        texts = self._whole_texts
        if token_id not in texts:
            try:
                texts[token_id] = self.token_bytes(token_id).decode()
            except UnicodeDecodeError:
                texts[token_id] = None
        return texts[token_id]

    def _compute_bytes(self, token_id: int) -> bytes:
        token = self.vocabulary.token(token_id)
        if token is None:
            return b""
        if self._codec is None:
            return self.vocabulary.decode([token_id]).encode("utf-8")
        return self._codec.to_bytes(token)

    def _role_id(self, role: str) -> int | None:
        token = self.special_tokens.get(role)
        return None if token is None else self.vocabulary.token_id(token)


def strip_spaces(text: str, count: int) -> str:
    """`text` without up to `count` of its leading spaces."""
    start = 0
    while start < min(count, len(text)) and text[start] == " ":
        start += 1
    return text[start:]

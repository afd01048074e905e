"""Which tokens end a text: the model's configurations and its tokenizer each name some."""

from __future__ import annotations

from collections.abc import Sequence

from streamserve.text.tokenizers.tokenizer import Tokenizer


def end_of_sequence_ids(configured: Sequence[int], tokenizer: Tokenizer, vocab_size: int) -> tuple[int, ...]:
    """The tokens that end a text: those that the model's configurations name, then the tokenizer's own `eos_token`.

    Fine-tunes for chat often change the end of a turn in only one of these files, so each of them counts.

    configured  from config.json, generation_config.json or a .gguf header
    vocab_size  of the model's logits; a token beyond them is never generated and ends nothing
    """
    named = (*configured, tokenizer.eos_token_id)
    return tuple(dict.fromkeys(token_id for token_id in named if token_id is not None and token_id < vocab_size))

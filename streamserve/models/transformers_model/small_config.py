"""A transformers configuration made small: the same kinds of layers, so narrow that they run on a CPU in milliseconds.

Plain arithmetic on configurations; knows no weights and no attention.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

from streamserve.models.transformers_model.classes import FAILURES

VOCABULARY = 96
WINDOW = 3
"""So few tokens that a check of a dozen passes beyond it."""

_NARROW = 32
_INNER = 48
_EXPERTS = 32

_WINDOWS = ("sliding_window", "attention_chunk_size", "sliding_window_size")


def small_configs(config: Any, num_layers: int) -> Iterator[Any]:
    """Ever less reduced copies of a configuration, with its first layers; which of them a class accepts is found by trying."""
    for narrow in (_narrow_heads, _fewer_heads, _same_heads):
        try:
            small = _shortened(config, num_layers)
            narrow(small)
        except FAILURES:
            # Some classes check what they are given at once, or have no such sizes.
            continue
        yield small


def _shortened(config: Any, num_layers: int) -> Any:
    """The first layers, few tokens, thin MLPs and not many experts."""
    small, layers = deepcopy(config), config.num_hidden_layers
    for name, value in list(vars(small).items()):
        if isinstance(value, list | tuple) and len(value) == layers:
            setattr(small, name, value[:num_layers])
        elif _is_size(value):
            setattr(small, name, _smaller(name, value))
    small.num_hidden_layers = num_layers
    if (getattr(small, "pad_token_id", None) or 0) >= VOCABULARY:
        # Embeddings have a row for it.
        small.pad_token_id = 0
    return small


def _smaller(name: str, value: int) -> int:
    if name.startswith("vocab_size"):
        return min(value, VOCABULARY)
    if name in _WINDOWS:
        return min(value, WINDOW)
    if "intermediate" in name or name in ("ffn_dim", "n_inner", "ffn_hidden_size"):
        return min(value, _INNER)
    if name in ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"):
        return min(value, _EXPERTS)
    return value


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _fewer_heads(config: Any) -> None:
    """Heads of their own size; the hidden state shrinks along with them."""
    size, remainder = divmod(config.hidden_size, config.num_attention_heads)
    if remainder:
        raise ValueError("the hidden state is not made of heads")
    heads = _drop_heads(config)
    config.hidden_size = heads * size


def _narrow_heads(config: Any) -> None:
    """Small heads too."""
    config.hidden_size = _drop_heads(config) * _NARROW
    if getattr(config, "head_dim", None) is not None:
        config.head_dim = _NARROW


def _same_heads(config: Any) -> None:
    """All heads: for classes whose other sizes depend on their number."""


def _drop_heads(config: Any) -> int:
    """Few heads, several queries to a key where there are; returns how many."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None)
    queries = heads // (kv_heads or heads)
    fewer_kv = 2 if (kv_heads or heads) % 2 == 0 else 1
    fewer = fewer_kv * next(count for count in (4, 3, 2, 1) if queries % count == 0)
    config.num_attention_heads = fewer
    if kv_heads is not None:
        config.num_key_value_heads = fewer_kv
    return fewer

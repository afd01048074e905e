"""How prompts become vectors."""

from __future__ import annotations

from typing import Literal

import msgspec

PoolingKind = Literal["last", "mean"]


class Pooling(msgspec.Struct, frozen=True, array_like=True):
    """How the hidden states of a prompt, behind the model's last norm, become one vector.

    kind        "last": that of the last token; "mean": the mean of all
    normalize   whether the vector is scaled to length 1
    dimensions  how many of its numbers are kept, the first ones, before it is scaled; None for all
    """

    kind: PoolingKind = "last"
    normalize: bool = True
    dimensions: int | None = None


class PoolingParams(msgspec.Struct, frozen=True, kw_only=True):
    """How to make one prompt's embedding; names and meanings are vLLM's `PoolingParams`, None for the model's own way."""

    dimensions: int | None = None
    normalize: bool | None = None
    truncate_prompt_tokens: int | None = None

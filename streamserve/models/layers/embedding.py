"""Both ends of a language model: token ids to vectors, and hidden states to logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamserve.models.arch import ModelArch
from streamserve.models.layers.linear import Linear, TiedLinear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.destination import Destination, Stored, copied
from streamserve.models.weights.placement import Placement


class Embedding(Stored):
    """A table of vectors, [rows, size]; where a head is tied to it, the head fills it."""

    def __init__(self, name: str, rows: int, size: int, place: Placement, *, tied: bool = False) -> None:
        super().__init__()
        self.name = name
        self.weight = place.empty(rows, size)
        self._tied = tied

    def forward(self, ids: Tensor) -> Tensor:
        """ids [tokens] -> [tokens, size]"""
        return F.embedding(ids, self.weight)

    def destinations(self) -> Iterator[Destination]:
        if not self._tied:
            yield copied(f"{self.name}.weight", self.weight)


def head_of(table: Embedding, arch: ModelArch, place: Placement) -> Linear:
    """The linear that makes logits of vectors like the table's: the table itself, or `lm_head` of its size."""
    if arch.tied_embeddings:
        return TiedLinear(table.name, table.weight, place)
    return Linear("", {"lm_head": arch.vocab_size}, table.weight.shape[1], place)


class TokenEmbedding(nn.Module):
    """Token ids to vectors, and the final norm and head that go back to logits."""

    def __init__(self, arch: ModelArch, place: Placement, *, norm_offset: float = 0.0) -> None:
        super().__init__()
        self.scale, self.softcap = arch.embedding_scale, arch.logit_softcap
        name, tied = "model.embed_tokens", arch.tied_embeddings
        self.table = Embedding(name, arch.vocab_size, arch.hidden_size, place, tied=tied)
        self.norm = RmsNorm("model.norm", arch.hidden_size, place, eps=arch.norm_eps, offset=norm_offset)
        self.head = head_of(self.table, arch, place)

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids [tokens] -> [tokens, hidden_size]"""
        embedded: Tensor = self.table(token_ids)
        return embedded if self.scale == 1.0 else embedded * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden_size] -> [rows, vocab_size]"""
        logits = self.head.after_norm(hidden, self.norm)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

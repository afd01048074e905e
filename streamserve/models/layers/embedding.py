"""Both ends of a language model: token ids to vectors, and hidden states to logits."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamserve.models.arch import ModelArch
from streamserve.models.division import vocabulary_share
from streamserve.models.layers.linear import VocabularyLinear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.destination import Destination, Region, Stored, copied
from streamserve.models.weights.placement import Placement


class Embedding(Stored):
    """A table of vectors, [rows, size]."""

    def __init__(self, name: str, rows: int, size: int, place: Placement) -> None:
        super().__init__()
        self._name = name
        self.weight = place.empty(rows, size)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [tokens] -> [tokens, size]"""
        return F.embedding(ids, self.weight)

    def destinations(self) -> Iterator[Destination]:
        yield copied(f"{self._name}.weight", self.weight)


class VocabularyEmbedding(Stored):
    """A table of a vector for each id of the vocabulary, divided among ranks by its rows; a head tied to it fills it.

    weight  [this rank's ids, size]
    """

    def __init__(self, name: str, vocab_size: int, size: int, place: Placement, *, tied: bool = False) -> None:
        super().__init__()
        self.name = name
        self._ids = vocabulary_share(vocab_size, place.rank, place.world_size)
        self._region = Region((vocab_size, size), (self._ids, range(size)))
        self._tied = tied
        self._communicator = place.communicator if place.world_size > 1 else None
        self.weight = place.empty(len(self._ids), size)

    def forward(self, ids: Tensor) -> Tensor:
        """ids [tokens] -> [tokens, size]; of an id that another rank holds the sum over ranks takes that rank's vector."""
        if self._communicator is None:
            return F.embedding(ids, self.weight)
        local = ids - self._ids.start
        elsewhere = (local < 0) | (local >= len(self._ids))
        vectors = F.embedding(local.masked_fill(elsewhere, 0), self.weight)
        return self._communicator.sum(vectors.masked_fill_(elsewhere.unsqueeze(1), 0.0))

    def destinations(self) -> Iterator[Destination]:
        if not self._tied:
            yield copied(f"{self.name}.weight", self.weight, self._region)


def head_of(table: VocabularyEmbedding, arch: ModelArch, place: Placement) -> VocabularyLinear:
    """The linear that makes logits of vectors like the table's: the table itself, or `lm_head` of its size."""
    size = table.weight.shape[1]
    if arch.tied_embeddings:
        return VocabularyLinear(table.name, arch.vocab_size, size, place, table=table.weight)
    return VocabularyLinear("lm_head", arch.vocab_size, size, place)


class TokenEmbedding(nn.Module):
    """Token ids to vectors, and the final norm and head that go back to logits."""

    def __init__(self, arch: ModelArch, place: Placement) -> None:
        super().__init__()
        self.scale, self.softcap, self.logit_scale = arch.embedding_scale, arch.logit_softcap, arch.logit_scale
        name, tied = "model.embed_tokens", arch.tied_embeddings
        self.table = VocabularyEmbedding(name, arch.vocab_size, arch.hidden_size, place, tied=tied)
        # The head is linear: what scales its outputs scales the norm before it, at no cost.
        self.norm = RmsNorm(
            "model.norm", arch.hidden_size, place, eps=arch.norm_eps, offset=arch.norm_offset, scale=arch.logit_scale
        )
        self.head = head_of(self.table, arch, place)

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids [tokens] -> [tokens, hidden_size]"""
        embedded: Tensor = self.table(token_ids)
        return embedded if self.scale == 1.0 else embedded * self.scale

    def states(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden_size] -> the same shape, behind the norm"""
        states: Tensor = self.norm(hidden)
        return states if self.logit_scale == 1.0 else states / self.logit_scale

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden_size] -> [rows, vocab_size]"""
        logits = self.head.after_norm(hidden, self.norm)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

"""Both ends of a language model: token ids to vectors, and hidden states to logits."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from streamserve.models.arch import ModelArch
from streamserve.models.layers.embedding import Embedding
from streamserve.models.layers.linear import Linear, TiedLinear
from streamserve.models.layers.norm import RmsNorm
from streamserve.models.weights.placement import Placement
from streamserve_kernels import norm_linear


class TokenEmbedding(nn.Module):
    """Token ids to vectors, and the final norm and head that go back to logits."""

    def __init__(self, arch: ModelArch, place: Placement, *, norm_offset: float = 0.0) -> None:
        super().__init__()
        self.scale, self.eps, self.softcap = arch.embedding_scale, arch.norm_eps, arch.logit_softcap
        self.table = Embedding("model.embed_tokens", arch.vocab_size, arch.hidden_size, place)
        self.norm = RmsNorm("model.norm", arch.hidden_size, place, offset=norm_offset)
        self.head: Linear = (
            TiedLinear(self.table)
            if arch.tied_embeddings
            else Linear("", {"lm_head": arch.vocab_size}, arch.hidden_size, place)
        )

    def forward(self, token_ids: Tensor) -> Tensor:
        """token_ids [tokens] -> [tokens, hidden_size]"""
        embedded = F.embedding(token_ids, self.table.weight)
        return embedded if self.scale == 1.0 else embedded * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [rows, hidden_size] -> [rows, vocab_size]"""
        logits = norm_linear(hidden, self.norm.weight, self.eps, self.head.weight)
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

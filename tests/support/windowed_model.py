"""Random models of a few layers that see windows, saved as checkpoints, and what transformers says they answer."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch

from tests.models.families import FAMILIES, reference_model

WINDOW = 20

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "mistral": ("mistral", {"sliding_window": WINDOW}),
    "gemma3": ("gemma3", {"num_hidden_layers": 3, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}),
}
"""All layers windowed, and two of them to one that sees everything."""


class WindowedModel:
    """The reference model, and the folder that holds its weights."""

    def __init__(self, name: str, folder: Path) -> None:
        family, changes = MODELS[name]
        prefix, settings = FAMILIES[family]
        model = reference_model(prefix, settings | {"max_position_embeddings": 256} | changes)
        model.save_pretrained(folder)
        self.path = str(folder)
        self._next = cache(lambda tokens: self._compute(model, tokens))

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """`count` greedy tokens, each computed from nothing."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(self._next(tuple(tokens)))
        return tokens[len(prompt) :]

    @staticmethod
    def _compute(model: Any, tokens: tuple[int, ...]) -> int:
        with torch.inference_mode():
            return int(model(torch.tensor([tokens])).logits[0, -1].argmax())

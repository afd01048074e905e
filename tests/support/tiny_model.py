"""A two-layer random Llama that transformers made, saved as a checkpoint, and what transformers says it answers."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from streamserve.types import Pooling

VOCAB = 199


class TinyLlama:
    """The reference model, and the folder that holds its weights."""

    def __init__(self, folder: Path, *, vocab_size: int = VOCAB, context: int = 256) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=vocab_size,
            hidden_size=96,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=6,
            num_key_value_heads=2,
            max_position_embeddings=context,
            dtype="float32",
        )
        model = LlamaForCausalLM(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(4.0)
        model.save_pretrained(folder)
        self.path = str(folder)
        self.logits = cache(lambda tokens: self._compute(model, tokens))
        """The logits after every token: tokens (as a tuple) -> [tokens, vocab] fp64."""
        self.states = cache(lambda tokens: self._compute_states(model, tokens))
        """The states behind the last norm: tokens (as a tuple) -> [tokens, hidden_size] fp64."""

    def greedy(self, prompt: list[int], count: int) -> list[int]:
        """`count` greedy tokens, each computed from nothing."""
        tokens = list(prompt)
        for _ in range(count):
            tokens.append(int(self.logits(tuple(tokens))[-1].argmax()))
        return tokens[len(prompt) :]

    @staticmethod
    def _compute(model: LlamaForCausalLM, tokens: tuple[int, ...]) -> npt.NDArray[np.float64]:
        with torch.inference_mode():
            return model(torch.tensor([tokens])).logits[0].double().numpy()

    @staticmethod
    def _compute_states(model: LlamaForCausalLM, tokens: tuple[int, ...]) -> npt.NDArray[np.float64]:
        with torch.inference_mode():
            return model.model(torch.tensor([tokens])).last_hidden_state[0].double().numpy()

    def embedding(self, tokens: list[int], pooling: Pooling) -> npt.NDArray[np.float64]:
        """What pooling makes of a prompt."""
        states = self.states(tuple(tokens))
        vector = (states[-1] if pooling.kind == "last" else states.mean(axis=0))[: pooling.dimensions]
        return vector / np.linalg.norm(vector) if pooling.normalize else vector

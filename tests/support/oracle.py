"""What a request must be answered: transformers' logits, and each parameter's formula, token after token.

Written apart from the engine: it knows requests as clients send them, no batches, no cache, no streams. Texts are ASCII, one
token per character.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from tests.support.byte_tokenizer import EOS, VOCAB_SIZE
from tests.support.sampling import RESTRICTIONS, Line, gumbel, kept_tokens, log_softmax, penalised
from tests.support.tiny_model import TinyLlama

READABLE = list(range(32, 127))
"""Token ids whose texts are whole characters."""


class Answer(NamedTuple):
    """One choice: its tokens, the text that is shown of them, the log-probabilities of every token at every place."""

    token_ids: list[int]
    text: str
    logprobs: list[Line]
    finish_reason: str
    stop_reason: int | str | None


class Oracle:
    """Answers requests for one model; those that sample bring a seed."""

    def __init__(self, model: TinyLlama) -> None:
        self._model = model

    def prompt_logprobs(self, prompt: str) -> list[Line]:
        """Of every prompt token but the first."""
        logits = self._model.logits(tuple(prompt.encode()))
        return [log_softmax(line) for line in logits[:-1]]

    def answer(self, prompt: str, asked: dict[str, Any], *, choice: int = 0) -> Answer:
        """Choice number `choice` of a request; `asked` in the API's names."""
        tokens, output, lines = list(prompt.encode()), list[int](), list[Line]()
        stops = [EOS, *asked.get("stop_token_ids", [])]
        while len(output) < asked["max_tokens"]:
            logits = self._model.logits(tuple(tokens + output))[-1]
            lines.append(log_softmax(logits))
            output.append(self._next(logits, tokens, output, asked, stops, choice))
            if output[-1] in stops:
                shown = output if asked.get("include_stop_str_in_output") else output[:-1]
                return Answer(output, _text(shown), lines, "stop", None if output[-1] == EOS else output[-1])
            for stop in asked.get("stop", []):
                text = _text(output)
                # Counts when it is completed after the tokens that must come.
                at = text.find(stop, max(asked.get("min_tokens", 0) - len(stop) + 1, 0))
                if at >= 0:
                    end = at + (len(stop) if asked.get("include_stop_str_in_output") else 0)
                    return Answer(output, text[:end], lines, "stop", stop)
        return Answer(output, _text(output), lines, "length", None)

    def _next(
        self, logits: Line, prompt: list[int], output: list[int], asked: dict[str, Any], stops: list[int], choice: int
    ) -> int:
        logits = logits.copy()
        if "allowed_token_ids" in asked:
            logits[np.setdiff1d(np.arange(VOCAB_SIZE), asked["allowed_token_ids"])] = -np.inf
        for token_id, bias in asked.get("logit_bias", {}).items():
            logits[int(token_id)] += bias
        if len(output) < asked.get("min_tokens", 0):
            logits[stops] = -np.inf
        for word in asked.get("bad_words", []):
            for spelled in (word.encode(), b" " + word.encode()):
                if bytes(output).endswith(spelled[:-1]):
                    logits[spelled[-1]] = -np.inf
        repetition, frequency = asked.get("repetition_penalty", 1.0), asked.get("frequency_penalty", 0.0)
        logits = penalised(logits, prompt, output, repetition, frequency, asked.get("presence_penalty", 0.0))
        temperature = asked.get("temperature", 1.0)
        if temperature == 0:
            return int(logits.argmax())
        kept = kept_tokens(logits, temperature, **{name: asked[name] for name in RESTRICTIONS if name in asked})
        noise = gumbel(asked["seed"] + choice, len(prompt) + len(output), VOCAB_SIZE)
        return int(np.where(kept, logits / temperature + noise, -np.inf).argmax())


def _text(token_ids: list[int]) -> str:
    return bytes(token_id for token_id in token_ids if token_id < EOS).decode("utf-8", "replace")

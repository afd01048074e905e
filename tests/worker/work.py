"""The work that tests give to steppers over a tiny model."""

from __future__ import annotations

import random
from collections.abc import Callable

from streamserve.types import SequenceSpec
from tests.support.stepping import Stepper, spec
from tests.support.tiny_model import VOCAB

MakeStepper = Callable[..., Stepper]


def prompt_of(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, VOCAB), k=length)


SAMPLED = {
    "plain": {},
    "temperature": {"temperature": 0.7},
    "top_k": {"top_k": 5, "temperature": 1.4},
    "top_p": {"top_p": 0.8, "temperature": 1.2},
    "min_p": {"min_p": 0.1, "temperature": 1.5},
    "everything": {"top_k": 30, "top_p": 0.9, "min_p": 0.01, "repetition_penalty": 1.2, "presence_penalty": 0.4},
    "repetition": {"repetition_penalty": 1.5},
    "frequency": {"frequency_penalty": 1.1},
    "presence": {"presence_penalty": 1.7},
    "greedy penalties": {"temperature": 0.0, "repetition_penalty": 1.8, "frequency_penalty": 0.5},
    "bias": {"logit_bias": {11: 3.0, 12: -100.0, 13: 2.0}},
    "allowed": {"allowed_token_ids": [4, 8, 15, 16, 23, 42, 108]},
}


def sampled_specs(max_tokens: int) -> list[SequenceSpec]:
    return [
        spec(name, prompt_of(10 + place, place), max_tokens, **({"temperature": 1.0, "seed": 2**40 + place} | settings))
        for place, (name, settings) in enumerate(SAMPLED.items())
    ]

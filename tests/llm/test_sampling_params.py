"""Sampling parameters check what they are given: nothing else stands between a program's mistake and the engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from streamserve import SamplingParams, StructuredOutputs
from streamserve.errors import InvalidParameter
from streamserve.types import LARGEST_FLOAT32, SMALLEST_FLOAT32


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 2.5),
        ("max_tokens", "5"),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", 1e39),
        ("top_p", 0.0),
        ("top_p", 1e-50),
        ("min_p", float("nan")),
        ("presence_penalty", float("nan")),
        ("frequency_penalty", float("-inf")),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-50),
        ("repetition_penalty", 1e39),
        ("logit_bias", {5: 1e39}),
        ("seed", 1.5),
        ("n", True),
        ("n", 2.0),
        ("stop", 5),
        ("stop", [5]),
        ("stop_token_ids", ["a"]),
        ("bad_words", "a"),
        ("logit_bias", [1]),
        ("logit_bias", {"5": 1.0}),
        ("logit_bias", {5: float("nan")}),
        ("logprobs", True),
        ("ignore_eos", "no"),
        ("structured_outputs", {"regex": "a", "json": {}}),
        ("stop", ["x" * 100] * 700),
        ("bad_words", ["x"] * 2000),
    ],
)
def test_a_value_that_will_not_do_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InvalidParameter) as refusal:
        SamplingParams(**{name: value})
    assert (refusal.value.param or "").split("[")[0] == name


def test_the_largest_and_smallest_values_are_numbers_on_a_device() -> None:
    with np.errstate(all="raise"):
        for value in (LARGEST_FLOAT32, SMALLEST_FLOAT32):
            assert np.float32(value) == value
            SamplingParams(temperature=value, repetition_penalty=value)


def test_what_will_do_as_well_is_put_right() -> None:
    given: dict[str, Any] = {"temperature": 1, "stop": ("a", "b"), "structured_outputs": {"regex": "a"}}
    params = SamplingParams(**given)
    assert (params.temperature, params.stop) == (1.0, ["a", "b"])
    assert params.structured_outputs == StructuredOutputs(regex="a")

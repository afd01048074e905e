"""Sampling parameters check what they are given: nothing else stands between a program's mistake and the engine."""

from __future__ import annotations

from typing import Any

import pytest

from streamserve import SamplingParams, StructuredOutputs
from streamserve.errors import InvalidParameter


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", 2.5),
        ("max_tokens", "5"),
        ("temperature", "hot"),
        ("temperature", float("nan")),
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


def test_what_will_do_as_well_is_put_right() -> None:
    given: dict[str, Any] = {"temperature": 1, "stop": ("a", "b"), "structured_outputs": {"regex": "a"}}
    params = SamplingParams(**given)
    assert (params.temperature, params.stop) == (1.0, ["a", "b"])
    assert params.structured_outputs == StructuredOutputs(regex="a")

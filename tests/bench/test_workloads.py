"""Workloads are random, and the same for the same seed."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from streamserve.bench.commands import bench
from streamserve.bench.measures import median, percentile
from streamserve.bench.workloads import Span, Workload

MIXED = Workload(50, Span(10, 40), Span(5, 9))


def test_lengths_stay_within_their_spans_and_ids_within_the_vocabulary() -> None:
    requests = MIXED.requests(vocab_size=1000, seed=1)
    assert len(requests) == 50
    assert {len(request.prompt_token_ids) for request in requests} > {10, 40}
    assert {request.output_len for request in requests} == {5, 6, 7, 8, 9}
    assert all(0 <= token < 1000 for request in requests for token in request.prompt_token_ids)


def test_a_variation_changes_the_tokens_and_not_the_lengths() -> None:
    first, again, other = (MIXED.requests(vocab_size=1000, seed=1, variation=number) for number in (0, 0, 1))
    assert first == again
    assert [len(request.prompt_token_ids) for request in first] == [len(request.prompt_token_ids) for request in other]
    assert all(a.prompt_token_ids[:4] != b.prompt_token_ids[:4] for a, b in zip(first, other, strict=True))


@given(st.lists(st.floats(-1e6, 1e6), min_size=1), st.floats(0, 1))
def test_a_percentile_is_one_of_the_values_with_that_share_at_or_below_it(values: list[float], share: float) -> None:
    found = percentile(values, share)
    assert found in values
    assert sum(value <= found for value in values) >= share * len(values) - 1e-9


def test_of_nothing_there_is_no_median() -> None:
    assert median([]) is None
    assert median([3, 1, 2]) == 2


@pytest.mark.parametrize("text", ["0", "-1", "5:4", "many", "1:2:3", ""])
def test_a_span_that_is_none_is_refused_with_a_hint(text: str) -> None:
    done = CliRunner().invoke(bench, ["serve", "-i", text])
    assert done.exit_code == 2
    assert "LOW" in done.output

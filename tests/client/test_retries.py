"""When a request is repeated, and after how long."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from streamserve_client import RetryPolicy

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
POLICY = RetryPolicy(max_retries=3, base_s=1.0, cap_s=3.0, jitter=lambda: 0.0, now=lambda: NOON)


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(status: int) -> None:
    assert POLICY.after_response(0, status, {}) == 1.0


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_what_would_fail_again_is_not(status: int) -> None:
    assert POLICY.after_response(0, status, {}) is None


def test_the_wait_doubles_up_to_its_cap_and_then_the_client_gives_up() -> None:
    assert [POLICY.after_failure(attempt) for attempt in range(4)] == [1.0, 2.0, 3.0, None]
    assert POLICY.after_response(3, 503, {}) is None


def test_jitter_shortens_the_wait_by_at_most_a_quarter() -> None:
    assert RetryPolicy(base_s=1.0, jitter=lambda: 1.0).after_failure(0) == 0.75


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "7", "retry-after-ms": "1500"}, 1.5),
        ({"retry-after": "Thu, 01 Jan 2026 12:00:09 GMT"}, 9.0),
        ({"retry-after": "3600"}, 1.0),
        ({"retry-after": "Thu, 01 Jan 2026 11:00:00 GMT"}, 1.0),
        ({"retry-after": "soon"}, 1.0),
        ({"retry-after": "-1"}, 1.0),
        ({"retry-after-ms": "nan"}, 1.0),
    ],
)
def test_the_server_says_how_long_unless_it_talks_nonsense(headers: dict[str, str], wait_s: float) -> None:
    assert POLICY.after_response(0, 429, headers) == wait_s


def test_the_server_has_the_last_word_on_whether() -> None:
    assert POLICY.after_response(0, 503, {"x-should-retry": "false"}) is None
    assert POLICY.after_response(0, 400, {"x-should-retry": "true"}) == 1.0

"""When to retry a request, and how long to wait first. Pure: the clock and the jitter are arguments.

A request is retried only before any part of its response has been used. A read timeout is not retried: the server may still be
working on the first copy, and a second one would cost it twice.
"""

from __future__ import annotations

import email.utils
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

RETRIED_STATUSES = frozenset({408, 409, 429})
LONGEST_SERVER_WAIT_S = 60.0


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Exponential backoff with jitter, unless the server's headers set the wait.

    max_retries  attempts after the first one
    base_s       the first wait; doubles each time up to `cap_s`
    jitter       a number in [0, 1): the wait is shortened by up to a quarter of it, so that clients don't retry in step
    """

    max_retries: int = 2
    base_s: float = 0.5
    cap_s: float = 8.0
    jitter: Callable[[], float] = field(default=random.random, repr=False)
    now: Callable[[], datetime] = field(default=_now, repr=False)

    def after_failure(self, attempt: int) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 0) got no response; None to give up."""
        return self._backoff(attempt) if attempt < self.max_retries else None

    def after_response(self, attempt: int, status: int, headers: Mapping[str, str]) -> float | None:
        """Seconds to wait after attempt number `attempt` (from 0) got an error response; None to give up.

        `x-should-retry` decides when present; else 408, 409, 429 and 5xx are retried. `retry-after-ms`, then `Retry-After`
        (seconds or an HTTP date, RFC 9110 10.2.3) set the wait when that is at most a minute.
        """
        if attempt >= self.max_retries or not _should_retry(status, headers):
            return None
        retry_after_s = server_wait_s(headers, self.now())
        if retry_after_s is not None and 0 <= retry_after_s <= LONGEST_SERVER_WAIT_S:
            return retry_after_s
        return self._backoff(attempt)

    def _backoff(self, attempt: int) -> float:
        return min(self.cap_s, self.base_s * 2.0**attempt) * (1 - 0.25 * self.jitter())


def _should_retry(status: int, headers: Mapping[str, str]) -> bool:
    override = headers.get("x-should-retry")
    if override in ("true", "false"):
        return override == "true"
    return status in RETRIED_STATUSES or status >= 500


def server_wait_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """The seconds to wait that the headers name; None when they name none, or nothing valid."""
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("retry-after")
    if value is None:
        return None
    seconds = _number(value)
    if seconds is not None:
        return seconds
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds()


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if number >= 0 else None

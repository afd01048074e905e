"""The headers in which OpenAI's API says what a key may still use. Pure functions.

https://platform.openai.com/docs/guides/rate-limits
"""

from __future__ import annotations

from streamserve.types import Quota, Quotas

Headers = list[tuple[bytes, bytes]]

NAMES = [f"x-ratelimit-{what}-{of}" for of in ("requests", "tokens") for what in ("limit", "remaining", "reset")]


def rate_limit_headers(quotas: Quotas | None) -> Headers:
    """Of each limit that a key has: how much a minute, how much is left, and when it is full again."""
    if quotas is None:
        return []
    return [*_headers("requests", quotas.requests), *_headers("tokens", quotas.tokens)]


def _headers(of: str, quota: Quota | None) -> Headers:
    if quota is None:
        return []
    return [
        (f"x-ratelimit-limit-{of}".encode(), b"%d" % quota.per_minute),
        (f"x-ratelimit-remaining-{of}".encode(), b"%d" % max(0, quota.level)),
        (f"x-ratelimit-reset-{of}".encode(), duration(quota.reset_s).encode()),
    ]


def duration(seconds: float) -> str:
    """A time as OpenAI writes it: "120ms", "8.64s", "6m0s"."""
    if seconds < 1:
        return f"{round(seconds * 1000)}ms"
    minutes, rest = divmod(round(seconds, 2), 60)
    return f"{minutes:.0f}m{rest:.4g}s" if minutes else f"{rest:.4g}s"

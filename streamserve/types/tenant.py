"""Whom requests belong to."""

from __future__ import annotations

import math

import msgspec


class Tenant(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Whom requests and what they leave behind belong to: everyone who sends the same API key.

    name    of the key, unique on a server; empty where it asks for none
    weight  its share of steps, rows and blocks, relative to those of other tenants that want some
    max_concurrency      requests that it may have at a time; None for no limit, as below
    max_queue_share      the part of the queue's places, and of its tokens, that it may fill
    requests_per_minute  that it may send
    tokens_per_minute    of prompts and outputs; those of an output count once it has ended
    """

    name: str = ""
    weight: float = 1.0
    max_concurrency: int | None = None
    max_queue_share: float = 1.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None

    def divided(self, num_engines: int) -> Tenant:
        """The tenant as each of several engines is to take it: with an equal part of its limits, at least one request."""
        concurrency, requests, tokens = self.max_concurrency, self.requests_per_minute, self.tokens_per_minute
        return msgspec.structs.replace(
            self,
            max_concurrency=None if concurrency is None else math.ceil(concurrency / num_engines),
            requests_per_minute=None if requests is None else requests / num_engines,
            tokens_per_minute=None if tokens is None else tokens / num_engines,
        )


ANYONE = Tenant()
"""Who sends requests to a server without keys."""

"""How long a client waits for an answer before it gives up, as far as its request says so. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Mapping

_WAIT = re.compile(r"(?:^|[,;])\s*wait\s*=\s*\"?(\d+(?:\.\d+)?)", re.IGNORECASE)

_READ_TIMEOUTS = ("x-stainless-read-timeout", "x-stainless-timeout")
"""Seconds without a byte after which SDKs of OpenAI and Anthropic give up."""

_WHOLE_TIMEOUT = "x-envoy-expected-rq-timeout-ms"
"""Milliseconds after which a proxy in front of the server does."""


def patience_s(headers: Mapping[str, str], *, silence_s: float | None = None) -> float | None:
    """Seconds that the client of a request waits for its answer; None where it does not say.

    It says so by `Prefer: wait=10` (RFC 7240, 4.3), by its SDK's time-out, or through Envoy.

    silence_s  the longest silence of the answer, where it is a stream: no read time-out above that fires
    """
    stated = [_number(match[1]) for match in [_WAIT.search(headers.get("prefer", ""))] if match]
    if (whole_ms := _number(headers.get(_WHOLE_TIMEOUT, ""))) is not None:
        stated.append(whole_ms / 1000)
    read = [_number(headers.get(name, "")) for name in _READ_TIMEOUTS]
    stated += [each for each in read if each is not None and (silence_s is None or each <= silence_s)]
    return min((each for each in stated if each is not None), default=None)


def _number(text: str) -> float | None:
    """A positive number; None for anything else."""
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < float("inf") else None

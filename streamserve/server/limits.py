"""What the server and its model allow a request. Plain values, for every API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class RequestLimits(msgspec.Struct, frozen=True, kw_only=True):
    """Bounds and defaults of requests.

    defaults             parameters taken from the model's generation_config.json when a request does not give them
    max_logprobs         the most alternatives per position
    max_model_len        tokens of prompt and output together
    priority_scheduling  whether a priority means anything
    """

    defaults: Mapping[str, Any]
    max_logprobs: int
    max_model_len: int
    priority_scheduling: bool

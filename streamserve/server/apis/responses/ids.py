"""Ids of responses and of their items.

An item's id holds that of its response, so that a reference to an item finds it without an index. Pure functions.
"""

from __future__ import annotations

import re
from uuid import uuid4

RESPONSE_PREFIX = "resp_"
"""What ids of responses begin with."""

_ITEM = re.compile(r"[a-z]+_(.+)_i?\d+")


def response_id(request_id: str | None) -> str:
    """The id of a new response; `request_id` is the request's own, if it has one."""
    return RESPONSE_PREFIX + (request_id or uuid4().hex)


def output_id(prefix: str, response_id: str, index: int) -> str:
    """The id of a response's output item; `prefix` tells its kind."""
    return f"{prefix}_{response_id.removeprefix(RESPONSE_PREFIX)}_{index}"


def input_id(prefix: str, response_id: str, index: int) -> str:
    """The id of an item of a response's input that came without one."""
    return f"{prefix}_{response_id.removeprefix(RESPONSE_PREFIX)}_i{index}"


def response_of(item_id: str) -> str | None:
    """The id of the response that an item belongs to; None for an id that was not made here."""
    parts = _ITEM.fullmatch(item_id)
    return None if parts is None else RESPONSE_PREFIX + parts[1]

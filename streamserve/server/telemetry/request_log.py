"""The request log of --enable-log-requests: a line per request with its shape and parameters, and never a client's text."""

from __future__ import annotations

import logging
from typing import Any

import msgspec

from streamserve.types import SamplingParams

logger = logging.getLogger("streamserve.server")


def log_request(id: str, params: SamplingParams, *, num_prompts: int, num_prompt_tokens: int, max_tokens: int) -> None:
    """Log a request that is about to run: numbers and booleans of it that are not the default's."""
    shape = {"prompts": num_prompts, "prompt_tokens": num_prompt_tokens, "max_tokens": max_tokens}
    fields = {**_changed(params), **shape}
    logger.info("request %s: %s", id, " ".join(f"{name}={value}" for name, value in fields.items()))


def _changed(params: SamplingParams) -> dict[str, Any]:
    return {
        field.name: value
        for field in msgspec.structs.fields(params)
        if (value := getattr(params, field.name)) != field.default and isinstance(value, int | float)
    }

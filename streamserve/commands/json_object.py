"""Options that take a JSON object."""

from __future__ import annotations

import json
from typing import Any

from streamserve.errors import ConfigError


def json_object(flag: str, text: str) -> dict[str, Any]:
    """The object that an option's text is. Raises `ConfigError` naming the flag."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{flag}: not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{flag}: must be a JSON object")
    return value

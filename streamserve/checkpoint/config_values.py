"""Numbers of a config.json, which people edit by hand: one that is missing or is none is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from streamserve.errors import ConfigError


def need(config: Mapping[str, Any], name: str) -> Any:
    """A number that the model can't do without. Raises `ConfigError`, naming the key, when it is missing, null or no number."""
    if config.get(name) is None:
        raise ConfigError(f"config.json: {name} is missing")
    return number(config, name, 0)


def positive(config: Mapping[str, Any], name: str, default: float | None = None) -> Any:
    """As `number`, or as `need` without a default; zero and less are refused too."""
    value = need(config, name) if default is None else number(config, name, default)
    if value <= 0:
        raise ConfigError(f"config.json: {name} is {value}, it must be more than zero")
    return value


def number(config: Mapping[str, Any], name: str, default: float) -> Any:
    """The number at `name`, `default` when there is no such key. Raises `ConfigError`, naming the key, for anything else."""
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"config.json: {name} is {json.dumps(value)[:40]}, it must be a number")
    return value

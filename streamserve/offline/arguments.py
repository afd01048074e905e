"""vLLM's `LLM(...)` arguments as `EngineConfig` fields, or refused by name.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.vllm_arguments import ARGUMENTS, refusal

_RENAMED = {
    "kv_cache_memory_bytes": "kv_cache_memory",
    "async_scheduling": "overlap",
    "override_pooler_config": "pooler_config",
}


def engine_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration fields that vLLM's arguments set; None is "not given", as there.

    Raises `ConfigError` naming an argument that is unknown, or a value that is not supported.
    """
    settings: dict[str, Any] = {}
    for name, value in arguments.items():
        field = _RENAMED.get(name, name)
        if field in EngineConfig.__struct_fields__:
            settings |= {} if value is None else {field: value}
        elif name == "generation_config":
            _check_generation_config(value)
        elif name not in ARGUMENTS:
            raise ConfigError(f"LLM() has no argument {name!r}; known are {', '.join(EngineConfig.__struct_fields__)}")
        elif (reason := refusal(name, value)) is not None:
            raise ConfigError(f"LLM({name}={value!r}) is not supported: {reason}")
    return settings


def _check_generation_config(value: Any) -> None:
    if value not in (None, "auto"):
        raise ConfigError(
            f"LLM(generation_config={value!r}) is not supported: defaults are the model's; pass sampling parameters for others"
        )

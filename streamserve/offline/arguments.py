"""vLLM's `LLM(...)` arguments as `EngineConfig` fields, or refused by name.

Pure functions.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from streamserve.config import EngineConfig
from streamserve.errors import ConfigError

_RENAMED = {"kv_cache_memory_bytes": "kv_cache_memory", "async_scheduling": "overlap"}

_ONLY: dict[str, tuple[Any, ...]] = {
    "tokenizer_mode": ("auto",),
    "skip_tokenizer_init": (False,),
    "tokenizer_revision": (None,),
    "code_revision": (None,),
    "quantization": (None,),
    "swap_space": (0, 4),
    "cpu_offload_gb": (0,),
    "disable_log_stats": (True, False),
    "disable_custom_all_reduce": (True, False),
    "enable_lora": (False, None),
    "speculative_config": (None,),
    "runner": ("auto", "generate"),
    "task": ("auto", "generate"),
    "generation_config": ("auto",),
    "limit_mm_per_prompt": (None,),
}
"""Arguments of vLLM, with the values that request what happens anyway; any other value is refused."""


def engine_settings(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The configuration fields that vLLM's arguments set.

    Raises `ConfigError` naming an argument that is unknown, or a value that is not supported.
    """
    settings: dict[str, Any] = {}
    for name, value in arguments.items():
        field = _RENAMED.get(name, name)
        if name in _ONLY and value in _ONLY[name]:
            continue
        if field in EngineConfig.__struct_fields__:
            settings[field] = value
        elif name in _ONLY:
            raise ConfigError(f"LLM({name}={value!r}) is not supported; leave it out")
        else:
            raise ConfigError(f"LLM() has no argument {name!r}; known are {', '.join(EngineConfig.__struct_fields__)}")
    return settings

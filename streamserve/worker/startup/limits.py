"""What a model lets a configuration ask for."""

from __future__ import annotations

from streamserve.errors import ConfigError


def resolve_max_model_len(wanted: int | None, limit: int) -> int:
    """The context length to serve. Raises `ConfigError` beyond what the model's positions reach."""
    if wanted is not None and wanted > limit:
        raise ConfigError(f"--max-model-len {wanted}: the model reaches {limit} tokens; lower it to {limit} or leave it out")
    return wanted or limit

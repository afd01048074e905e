"""How a checkpoint's embeddings are made: what sentence-transformers saves beside the model says so.

Reads `modules.json` and the configuration of the pooling module, in the folder that the first names
(https://sbert.net/docs/sentence_transformer/usage/custom_models.html).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from streamserve.checkpoint.files import Checkpoint, read_json, read_value
from streamserve.errors import ConfigError
from streamserve.types import Pooling, PoolingKind

_MODES: Mapping[str, PoolingKind] = {"pooling_mode_lasttoken": "last", "pooling_mode_mean_tokens": "mean"}
_KINDS: Mapping[str, PoolingKind] = {"LAST": "last", "MEAN": "mean"}


def pooling_of(checkpoint: Checkpoint, override: Mapping[str, Any]) -> Pooling:
    """How prompts are pooled by default.

    override  `EngineConfig.pooler_config`, which goes before the checkpoint's files

    Raises `ConfigError` for a checkpoint whose pooling is neither of the last token nor a mean, and is not overridden.
    """
    modules = _modules(checkpoint.path)
    named = override.get("pooling_type")
    kind = _own_kind(checkpoint, modules) if named is None else _KINDS[named]
    normalizes = not modules or any(type.endswith("Normalize") for type in modules)
    return Pooling(kind, override.get("normalize", override.get("use_activation", normalizes)))


def _modules(path: Path) -> dict[str, str]:
    """The folders of the checkpoint's modules, by their types; none where it has no list of them."""
    listed = read_value(path / "modules.json") if path.is_dir() else None
    if not isinstance(listed, list):
        return {}
    return {str(each.get("type")): str(each.get("path")) for each in listed if isinstance(each, Mapping)}


def _own_kind(checkpoint: Checkpoint, modules: Mapping[str, str]) -> PoolingKind:
    folder = next((path for type, path in modules.items() if type.endswith("Pooling")), None)
    config = None if folder is None else read_json(checkpoint.path / folder / "config.json")
    chosen = [name for name, value in (config or {}).items() if name.startswith("pooling_mode_") and value is True]
    if not chosen:
        return "last"
    if len(chosen) > 1 or chosen[0] not in _MODES:
        raise ConfigError(
            f"{checkpoint.source}: its embeddings are pooled by {', '.join(chosen)}, which is not supported: say "
            """--pooler-config '{"pooling_type": "MEAN"}', or LAST"""
        )
    return _MODES[chosen[0]]

"""How embeddings are made, by the files that sentence-transformers saves, or by --pooler-config."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from streamserve.checkpoint.files import Checkpoint
from streamserve.checkpoint.pooling import pooling_of
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.types import Pooling

TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
OVERRIDE = {"pooling_type": "LAST", "normalize": True}
NORMALIZE = {"path": "2_Normalize", "type": "sentence_transformers.models.Normalize"}


def checkpoint(folder: Path, modules: list[dict[str, str]] | None, **modes: bool) -> Checkpoint:
    if modules is not None:
        (folder / "modules.json").write_text(json.dumps(modules))
        (folder / "1_Pooling").mkdir()
        (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 8, **modes}))
    return Checkpoint(source="model", path=folder, format="dummy", config={})


@pytest.mark.parametrize(
    ("modules", "mode", "override", "expected"),
    [
        (None, "", {}, Pooling("last", True)),
        ([TRANSFORMER, POOLING, NORMALIZE], "pooling_mode_lasttoken", {}, Pooling("last", True)),
        ([TRANSFORMER, POOLING], "pooling_mode_mean_tokens", {}, Pooling("mean", False)),
        (
            [TRANSFORMER, POOLING],
            "pooling_mode_mean_tokens",
            {"pooling_type": "LAST", "normalize": True},
            Pooling("last", True),
        ),
        ([TRANSFORMER, POOLING], "pooling_mode_cls_token", {"pooling_type": "MEAN"}, Pooling("mean", False)),
        (None, "", {"pooling_type": "MEAN", "use_activation": False}, Pooling("mean", False)),
    ],
)
def test_files_and_flag_say_how_prompts_are_pooled(
    tmp_path: Path, modules: list[dict[str, str]] | None, mode: str, override: dict[str, Any], expected: Pooling
) -> None:
    assert pooling_of(checkpoint(tmp_path, modules, **{mode: True, "pooling_mode_max_tokens": False}), override) == expected


def test_a_pooling_that_is_not_built_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pooled by pooling_mode_cls_token, which is not supported: say --pooler-config"):
        pooling_of(checkpoint(tmp_path, [TRANSFORMER, POOLING], pooling_mode_cls_token=True), {})


@pytest.mark.parametrize(
    ("pooler", "message"),
    [
        ({"pooling_type": "CLS"}, "pooling_type must be one of LAST, MEAN, got 'CLS'"),
        ({"normalize": 1}, "normalize must be true or false, got 1"),
        ({"step_tag_id": 3}, "'step_tag_id' is not supported"),
    ],
)
def test_a_pooler_config_that_means_nothing_here_is_refused(pooler: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        EngineConfig(model="demo", pooler_config=pooler)

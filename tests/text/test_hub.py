"""A tokenizer by Hub id, from a stub Hub on loopback, in a process of its own: huggingface_hub reads its settings once."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError
from streamserve.text.tokenizers.tokenizer import tokenizer_of
from tests.checkpoint.hub import StubHub, stub_hub

BY_CONFIG = """
import sys
from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.text.tokenizers.tokenizer import tokenizer_of
config = EngineConfig(model="org/words", tokenizer_revision="v2", download_dir=sys.argv[1])
print(tokenizer_of(config, resolve("demo")).encode("b a"))
"""
SCRIPT = """
from streamserve.checkpoint.names import resolve
from streamserve.text.tokenizers.tokenizer import load_tokenizer
tokenizer = load_tokenizer(resolve("demo"), tokenizer="org/words")
print(tokenizer.encode("b a"), tokenizer.chat_templates)
"""
TOKENIZER = """{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
 "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
 "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StubHub]:
    repository = tmp_path / "hub" / "org" / "words"
    repository.mkdir(parents=True)
    files = {
        "tokenizer.json": TOKENIZER,
        "chat_template.jinja": "hello",
        "config.json": "{}",
        "model.safetensors": "",
        "evil.py": "",
    }
    for name, text in files.items():
        (repository / name).write_text(text)
    with stub_hub(tmp_path / "hub") as server:
        yield server


def run(script: str, hub: StubHub, home: Path, *arguments: str) -> str:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", script, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_named_tokenizer_is_fetched_without_the_model_around_it(hub: StubHub, tmp_path: Path) -> None:
    assert run(SCRIPT, hub, tmp_path) == "[1, 0] {'default': 'hello'}\n"
    assert hub.downloads() == {"tokenizer.json", "chat_template.jinja", "config.json"}


def test_a_tokenizer_may_be_of_another_revision_of_the_models_repository(hub: StubHub, tmp_path: Path) -> None:
    assert run(BY_CONFIG, hub, tmp_path / "home", str(tmp_path / "kept")) == "[1, 0]\n"
    assert any("/revision/v2" in request for request in hub.requests)
    assert list((tmp_path / "kept").rglob("tokenizer.json"))


@pytest.mark.parametrize("names", [{"model": "demo"}, {"model": "org/tiny", "tokenizer": "."}])
def test_a_tokenizer_on_this_disk_has_no_revisions(names: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="--tokenizer-revision v2: only repositories"):
        tokenizer_of(EngineConfig(tokenizer_revision="v2", **names), resolve("demo"))

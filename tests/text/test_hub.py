"""A tokenizer by Hub id, from a stub Hub on loopback, in a process of its own: huggingface_hub reads its settings once."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.checkpoint.hub import stub_hub

SCRIPT = """
from streamserve.checkpoint.names import resolve
from streamserve.text.tokenizers.tokenizer import load_tokenizer
tokenizer = load_tokenizer(resolve("demo"), tokenizer="org/words")
print(tokenizer.encode("b a"), tokenizer.chat_templates)
"""
TOKENIZER = """{"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": null,
 "pre_tokenizer": {"type": "Whitespace"}, "post_processor": null, "decoder": null,
 "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"}}"""


def test_a_named_tokenizer_is_fetched_without_the_model_around_it(tmp_path: Path) -> None:
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
    with stub_hub(tmp_path / "hub") as hub:
        environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path), "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        environment |= {"NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "[1, 0] {'default': 'hello'}\n"
        assert hub.downloads() == {"tokenizer.json", "chat_template.jinja", "config.json"}

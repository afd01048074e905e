"""A model's files on disk: its configuration, weight format and end-of-sequence ids.

Runs where the API runs. Reads configurations, never weights; knows no torch, no transformers and no network.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, Literal

from streamserve.checkpoint.text_part import has_other_parts, text_config, text_name
from streamserve.errors import ConfigError, ModelNotSupported

WeightFormat = Literal["safetensors", "gguf", "dummy"]

INDEX = "model.safetensors.index.json"
SINGLE_FILE = "model.safetensors"
OTHER_WEIGHTS = ["consolidated*", "adapter_*"]
"""Files that lie beside a model's own weights: Mistral's form of them, adapters of LoRA."""

PICKLE_PATTERNS = ["pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt"]


@dataclass(frozen=True)
class Checkpoint:
    """A model on this machine's disk.

    source             the name that the user gave
    path               a folder, or a .gguf file
    format             how the weights are stored; "dummy" has none and gets random ones
    config             transformers' config.json, for GGUF files too; of the text part alone where there are others
    has_other_parts    its tensors are those of a model that reads images or sound too
    generation_config  generation_config.json, empty when there is none
    eos_token_ids      tokens that end a text, by any of the configurations
    """

    source: str
    path: Path
    format: WeightFormat
    config: dict[str, Any]
    has_other_parts: bool = False
    generation_config: dict[str, Any] = field(default_factory=dict)
    eos_token_ids: tuple[int, ...] = ()


def read_checkpoint(source: str, path: Path, load_format: str) -> Checkpoint:
    """Read the configuration of the model at `path`, a folder, a config.json or a .gguf file.

    source  the name that the user gave, for messages

    Raises `ConfigError` when files are missing or don't fit `load_format`, `ModelNotSupported` for a format that can't be read.
    """
    if path.is_file() and path.suffix == ".gguf":
        return _from_gguf(source, path, load_format)
    return _from_folder(source, path.parent if path.name == "config.json" else path, load_format)


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
    quantization = read_json(folder / "hf_quant_config.json")
    if quantization is not None and "quantization_config" not in config:
        # NVIDIA's Model Optimizer writes what others write into config.json.
        config["quantization_config"] = {"quant_method": "modelopt"} | quantization.get("quantization", {})
    generation = read_json(folder / "generation_config.json") or {}
    return Checkpoint(
        source=source,
        path=folder,
        format="dummy" if load_format == "dummy" else _weight_format(source, folder, load_format, has_other_parts(config)),
        config=text_config(config),
        has_other_parts=has_other_parts(config),
        generation_config=generation,
        eos_token_ids=_eos_token_ids(generation, config, text_config(config)),
    )


def _no_config(source: str, folder: Path) -> ConfigError:
    files = sorted(folder.glob("*.gguf")) if folder.is_dir() else []
    if files:
        return ConfigError(f"{source}: holds .gguf files; name one of them, for example --model {files[0]}")
    return ConfigError(f"{source}: no config.json there; give a folder in Hugging Face form or a .gguf file")


def _weight_format(source: str, folder: Path, load_format: str, text_only: bool) -> WeightFormat:
    if load_format == "gguf":
        raise ConfigError(f"{source} is a folder: --load-format gguf needs a .gguf file")
    files = weight_files(folder, text_only=text_only)
    if missing := sorted(file.name for file in files if not file.is_file()):
        raise ConfigError(f"{source}: {len(missing)} of its files are missing, among them {missing[0]}; download it again")
    if files:
        return "safetensors"
    refuse_pickles(source, [file.name for file in folder.iterdir()])
    raise ConfigError(f"{source}: no *.safetensors weights in {folder}; for random weights add --load-format dummy")


def refuse_pickles(source: str, names: list[str]) -> None:
    """Raise a `ConfigError` with the command that converts them when the files `names` hold weights as pickles."""
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


def weight_files(folder: Path, *, text_only: bool) -> list[Path]:
    """The safetensors files that hold the model's weights, there or not: those of the index, else the single file's.

    A folder often holds others: the same weights under other names (`consolidated`), an adapter, the single file of an older
    upload beside an index. Without either, each file that is none of these counts. Raises `ConfigError` for a damaged index.

    text_only  leave out the files of an index that have no tensor of the text part
    """
    index = read_json(folder / INDEX)
    if index is not None:
        return [folder / name for name in _indexed(folder / INDEX, index, text_only)]
    if (folder / SINGLE_FILE).is_file():
        return [folder / SINGLE_FILE]
    files = sorted(folder.glob("*.safetensors"))
    return [file for file in files if not any(fnmatch(file.name, pattern) for pattern in OTHER_WEIGHTS)]


def _indexed(path: Path, index: dict[str, Any], text_only: bool) -> list[str]:
    names = index.get("weight_map")
    if not isinstance(names, dict) or not names or not all(isinstance(name, str) for name in names.values()):
        raise ConfigError(f"{path}: its weight_map must name the file of each tensor; download it again")
    return sorted({file for name, file in names.items() if not text_only or text_name(name) is not None})


def _eos_token_ids(*configurations: dict[str, Any]) -> tuple[int, ...]:
    found: list[int] = []
    for source in configurations:
        ids = source.get("eos_token_id")
        if ids is not None:
            found += ids if isinstance(ids, list) else [ids]
    return tuple(dict.fromkeys(found))


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in one of a model's JSON files; None when there is no such file. Raises `ConfigError` for other content."""
    value = read_value(path)
    if not isinstance(value, dict | None):
        raise ModelNotSupported(f"{path}: expected a JSON object")
    return value


def read_value(path: Path) -> Any:
    """As `read_json`, of whatever kind the file's content is."""
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path}: not valid JSON ({error})") from error

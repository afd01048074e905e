"""Finds and loads the tokenizer that belongs to a checkpoint.

In order: `tokenizer.json`, read by the `tokenizers` library; a .gguf file's own vocabulary; and for folders with neither
(older models, remote code) transformers' `AutoTokenizer`, imported only then. Runs once, in each process that handles text;
nothing else in this package reads files or the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers

from streamserve.checkpoint.download import TokenizerFiles, download
from streamserve.checkpoint.files import read_json
from streamserve.checkpoint.names import DEMO, demo_path
from streamserve.errors import ConfigError
from streamserve.text.tokenizers.vocabulary import FastVocabulary, Vocabulary

_TOKENIZER_FILES = [
    *("config.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json"),
    *("chat_template*", "additional_chat_templates/*", "*.model"),
]


@dataclass(frozen=True)
class TokenizerParts:
    """The contents of a tokenizer's files.

    special_tokens  by role, as templates name them: `bos_token`, `eos_token`, `image_token`, …
    chat_templates  Jinja sources by name; the usual one is "default"
    response_template  how answers are written, as transformers documents it; None where a model doesn't say
    """

    vocabulary: Vocabulary
    special_tokens: dict[str, str] = field(default_factory=dict)
    chat_templates: dict[str, str] = field(default_factory=dict)
    response_template: Any = None


def load_parts(path: Path, trust_remote_code: bool) -> TokenizerParts:
    """Read a folder, a .gguf file or a tokenizer.json; errors as `load_tokenizer`."""
    if path.suffix == ".gguf":
        return _from_gguf(path)
    if path.name == "tokenizer.json":
        path = path.parent
    if (path / "tokenizer.json").is_file():
        return _from_folder(path)
    return _from_transformers(path, trust_remote_code)


def locate_tokenizer(name: str, revision: str | None, trust_remote_code: bool, download_dir: str | None) -> Path:
    """The path of a local tokenizer, or of a repository's, of which only the tokenizer's files are downloaded.

    Raises `ConfigError` when it is neither.
    """
    path = demo_path() if name == DEMO else Path(name).expanduser()
    if path.exists():
        return path
    patterns = [*_TOKENIZER_FILES, "*.py"] if trust_remote_code else _TOKENIZER_FILES
    try:
        return download(TokenizerFiles(name, revision, patterns, download_dir))
    except ConfigError as error:
        raise ConfigError(
            f"--tokenizer {name}: neither a local path nor a repository that can be fetched ({error.message})"
        ) from error


def _from_gguf(path: Path) -> TokenizerParts:
    from streamserve.checkpoint.gguf_file import open_gguf
    from streamserve.text.tokenizers.gguf_tokenizer import build_tokenizer

    metadata = open_gguf(path).metadata
    tokens: list[str] = metadata.get("tokenizer.ggml.tokens", [])
    ids = {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding", "unk_token": "unknown"}
    special = {
        role: tokens[metadata[key]] for role, name in ids.items() if (key := f"tokenizer.ggml.{name}_token_id") in metadata
    }
    prefix = "tokenizer.chat_template"
    templates = {
        key[len(prefix) + 1 :] or "default": value for key, value in metadata.items() if key.split(".")[:2] == prefix.split(".")
    }
    return TokenizerParts(FastVocabulary(build_tokenizer(metadata)), special, templates)


def _from_folder(path: Path) -> TokenizerParts:
    try:
        backend = tokenizers.Tokenizer.from_file(str(path / "tokenizer.json"))
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"{path / 'tokenizer.json'} can't be read: {error}") from error
    config = _object(path / "tokenizer_config.json")
    special = _special_tokens(_object(path / "special_tokens_map.json") | config)
    _add_missing_tokens(backend, config)
    _apply_bos_and_eos(backend, config, special)
    return TokenizerParts(FastVocabulary(backend), special, _chat_templates(path, config), config.get("response_template"))


def _from_transformers(path: Path, trust_remote_code: bool) -> TokenizerParts:
    from streamserve.text.tokenizers.transformers_tokenizer import load_with_transformers

    config = _object(path / "tokenizer_config.json")
    if "AutoTokenizer" in config.get("auto_map", {}) and not trust_remote_code:
        raise ConfigError(f"{path}: its tokenizer is code of its own; if you trust it, allow it with --trust-remote-code")
    vocabulary, special = load_with_transformers(path, trust_remote_code)
    return TokenizerParts(vocabulary, special, _chat_templates(path, config), config.get("response_template"))


def _special_tokens(config: dict[str, Any]) -> dict[str, str]:
    """Special tokens by role, a model's own roles included; each is written as a string or as an object with `content`."""
    roles = {role: value for role, value in config.items() if role.endswith("_token")}
    for own in ("extra_special_tokens", "model_specific_special_tokens"):
        if isinstance(config.get(own), dict):
            roles |= config[own]
    found = {}
    for role, value in roles.items():
        token = value.get("content") if isinstance(value, dict) else value
        if isinstance(token, str):
            found[role] = token
    return found


def _add_missing_tokens(backend: tokenizers.Tokenizer, config: dict[str, Any]) -> None:
    """Add tokens that only tokenizer_config.json lists, in the order of their ids."""
    known = backend.get_added_tokens_decoder()
    listed = {int(token_id): entry for token_id, entry in (config.get("added_tokens_decoder") or {}).items()}
    for token_id, entry in sorted(listed.items()):
        if token_id in known:
            continue
        flags = {name: bool(entry.get(name, False)) for name in ("lstrip", "rstrip", "single_word", "normalized", "special")}
        backend.add_tokens([tokenizers.AddedToken(entry["content"], **flags)])
        if backend.token_to_id(entry["content"]) != token_id:
            raise ConfigError(
                f"tokenizer_config.json gives {entry['content']!r} the id {token_id}, which tokenizer.json contradicts"
            )


def _apply_bos_and_eos(backend: tokenizers.Tokenizer, config: dict[str, Any], special: dict[str, str]) -> None:
    """Follow `add_bos_token` and `add_eos_token` where tokenizer_config.json gives them, as transformers does."""
    if "add_bos_token" not in config and "add_eos_token" not in config:
        return
    before = [special["bos_token"]] if config.get("add_bos_token") and "bos_token" in special else []
    after = [special["eos_token"]] if config.get("add_eos_token") and "eos_token" in special else []
    used = [(token, backend.token_to_id(token)) for token in {*before, *after}]
    if any(token_id is None for _, token_id in used):
        return
    backend.post_processor = tokenizers.processors.TemplateProcessing(single=[*before, "$A", *after], special_tokens=used)


def _chat_templates(path: Path, config: dict[str, Any]) -> dict[str, str]:
    """Chat templates by name, in transformers' order: files of their own, then tokenizer_config.json.

    chat_template.json is a processor's, which transformers' tokenizers don't read: taken where there is no other.
    """
    configured = config.get("chat_template")
    templates: dict[str, str] = {}
    if isinstance(configured, str):
        templates["default"] = configured
    elif isinstance(configured, list):
        templates |= {entry["name"]: entry["template"] for entry in configured}
    for file in sorted((path / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    if (path / "chat_template.jinja").is_file():
        templates["default"] = (path / "chat_template.jinja").read_text(encoding="utf-8")
    processors = _object(path / "chat_template.json").get("chat_template")
    if isinstance(processors, str):
        templates.setdefault("default", processors)
    return templates


def _object(path: Path) -> dict[str, Any]:
    return read_json(path) or {}

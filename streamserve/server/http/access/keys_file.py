"""The keys file: API keys by their hashes, with names and limits. Read at the start and on SIGHUP."""

from __future__ import annotations

import re
from hashlib import sha256
from pathlib import Path

import msgspec

from streamserve.errors import ConfigError
from streamserve.server.config import ApiKey
from streamserve.types import Tenant

_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_EMPTY = sha256(b"").hexdigest()


class _Entry(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """One key of the file; limits as in `Tenant`.

    sha256  of the key, in hexadecimal; several while one key replaces another
    """

    name: str
    sha256: str | list[str]
    weight: float = 1.0
    max_concurrency: int | None = None
    max_queue_share: float = 1.0
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None


def read_keys_file(path: str) -> list[ApiKey]:
    """The keys of a YAML or JSON file: a list of entries. Raises `ConfigError` with the entry at fault."""
    # Here and not above: most servers have no such file.
    import yaml

    try:
        entries = msgspec.convert(yaml.safe_load(Path(path).read_bytes()), list[_Entry])
    except OSError as error:
        raise ConfigError(f"--api-keys-file {path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        # Not the error's own text, which quotes the file.
        raise ConfigError(f"--api-keys-file {path}: is no YAML{_place(error)}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"--api-keys-file {path}: {error}") from None
    if not entries:
        raise ConfigError(f"--api-keys-file {path}: has no keys, and would open the server to nobody")
    names = [entry.name for entry in entries]
    for entry in entries:
        if (fault := _fault_of(entry, names)) is not None:
            raise ConfigError(f"--api-keys-file {path}: key {entry.name!r}: {fault}")
    return [key for entry in entries for key in _keys_of(entry)]


def _fault_of(entry: _Entry, names: list[str]) -> str | None:
    hashes = _hashes(entry)
    if not _NAME.fullmatch(entry.name) or re.fullmatch(r"key-\d+", entry.name):
        return "a name is letters, digits, dots, dashes and underscores, and not key-1 and the like"
    if names.count(entry.name) > 1:
        return "the name is there twice; two keys of one tenant are two hashes"
    if not hashes or not all(map(_SHA256.fullmatch, hashes)):
        return "sha256 must be 64 digits of lower-case hexadecimal: printf %s KEY | sha256sum"
    if _EMPTY in hashes:
        return "that is the hash of an empty key"
    if not 0.001 <= entry.weight <= 1000:
        return "weight must be between 0.001 and 1000"
    if not 0 < entry.max_queue_share <= 1:
        return "max_queue_share must be above 0 and at most 1"
    for name in ("max_concurrency", "requests_per_minute", "tokens_per_minute"):
        limit = getattr(entry, name)
        if limit is not None and not limit >= 1:
            return f"{name} must be at least 1"
    return None


def _keys_of(entry: _Entry) -> list[ApiKey]:
    tenant = Tenant(
        name=entry.name,
        weight=entry.weight,
        max_concurrency=entry.max_concurrency,
        max_queue_share=entry.max_queue_share,
        requests_per_minute=entry.requests_per_minute,
        tokens_per_minute=entry.tokens_per_minute,
    )
    return [ApiKey(sha256=bytes.fromhex(hash), tenant=tenant) for hash in _hashes(entry)]


def _hashes(entry: _Entry) -> list[str]:
    return [entry.sha256] if isinstance(entry.sha256, str) else entry.sha256


def _place(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    return "" if mark is None else f" (line {mark.line + 1})"

"""Downloads from the Hub, each in a process of its own.

A program can't be interrupted while it downloads: its end waits for huggingface_hub's threads, for ever beside a silent Hub.
The process, `streamserve.checkpoint.hub`, ends with the one that started it, whatever it is doing.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec

from streamserve.errors import ConfigError
from streamserve.process.child import start_module


class ModelFiles(msgspec.Struct, frozen=True, tag=True):
    """A model's configuration, tokenizer and, unless `load_format` is "dummy", weights.

    download_dir  where they are kept; None for huggingface_hub's cache
    """

    repository: str
    revision: str | None
    load_format: str
    trust_remote_code: bool
    download_dir: str | None = None


class TokenizerFiles(msgspec.Struct, frozen=True, tag=True):
    """A tokenizer's files alone, by their patterns; `download_dir` as of a model's."""

    repository: str
    revision: str | None
    patterns: list[str]
    download_dir: str | None = None


class Outcome(msgspec.Struct, frozen=True):
    """Where the files lie, or why they can't be had."""

    folder: str = ""
    problem: str = ""


def download(files: ModelFiles | TokenizerFiles) -> Path:
    """The local folder of a repository's files, downloading those that are not there; blocks.

    Raises `ConfigError` with what to do when they can't be had.
    """
    process = start_module("streamserve.checkpoint.hub", stdout=subprocess.PIPE)
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # The pipe stays open: the process takes its end for this one's.
        process.stdin.write(msgspec.json.encode(files) + b"\n")
        process.stdin.flush()
        line = process.stdout.read()
    except BrokenPipeError:
        line = b""
    finally:
        process.kill()
        process.communicate()
    if not line:
        raise ConfigError(f"{files.repository}: the download ended with status {process.returncode}; its log says why")
    outcome = msgspec.json.decode(line, type=Outcome)
    if outcome.problem:
        raise ConfigError(outcome.problem)
    return Path(outcome.folder)

"""Starts further processes of this program, with the same interpreter and import path.

Their task is a line of JSON on their standard input, where no other user can read it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

T = TypeVar("T")


def start_module(
    module: str, *, pass_fds: Sequence[int] = (), variables: Mapping[str, str] | None = None, stdout: int | None = None
) -> subprocess.Popen[bytes]:
    """Start `python -m module` with a pipe to its standard input, and `variables` added to its environment.

    stdout  as `subprocess.Popen` takes it
    """
    return subprocess.Popen(
        module_command(module),
        stdin=subprocess.PIPE,
        stdout=stdout,
        pass_fds=pass_fds,
        env={**environment(), **(variables or {})},
    )


def module_command(module: str) -> list[str]:
    """The command that runs `module`, in an `environment`."""
    # -P and an explicit path: else Python would search the working folder first, and a user's queue.py there would shadow the
    # standard library's.
    return [sys.executable, "-P", "-m", module]


def environment() -> dict[str, str]:
    """This process's environment, in which modules and their bytecode are found as they are here."""
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(folder or os.getcwd() for folder in sys.path)}
    if sys.pycache_prefix is not None:
        variables["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix
    if not sys.dont_write_bytecode:
        variables.pop("PYTHONDONTWRITEBYTECODE", None)
    return variables


def encode_with_paths(value: msgspec.Struct) -> bytes:
    """`value` as one line of JSON, paths as text."""
    return msgspec.json.encode(value, enc_hook=_to_text)


def decode_with_paths(line: bytes, kind: type[T]) -> T:
    """The inverse of `encode_with_paths`."""
    return msgspec.json.decode(line, type=kind, dec_hook=_from_text)


def _to_text(value: Any) -> str:
    if isinstance(value, Path):
        return str(value)
    raise NotImplementedError(f"{type(value).__name__} can't cross to another process")


def _from_text(kind: type, value: Any) -> Any:
    if kind is Path:
        return Path(value)
    raise NotImplementedError(f"{kind.__name__} can't cross to another process")

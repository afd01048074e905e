"""Environments for clients: made on first use, kept in the user's cache, one for each set of versions."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "streamserve-foreign"
PROGRAMS = Path(__file__).parent / "programs"
INSTALL_TIMEOUT_S = 400


def python_with(*requirements: str) -> Path:
    """A Python that has these packages. Skips the test when they can't be installed."""
    folder = _folder("python", sys.version.split()[0], *requirements)
    python = folder / "bin" / "python"
    if not (folder / "complete").exists():
        _install([sys.executable, "-m", "venv", "--clear", str(folder)])
        _install([str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *requirements])
        (folder / "complete").touch()
    return python


def node_modules_with(*requirements: str) -> Path:
    """A `node_modules` folder that has these packages. Skips the test without Node.js, or when they can't be installed."""
    if shutil.which("node") is None or shutil.which("npm") is None:
        pytest.skip("Node.js and npm are not installed")
    folder = _folder("node", *requirements)
    if not (folder / "complete").exists():
        folder.mkdir(parents=True, exist_ok=True)
        _install(["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), *requirements])
        (folder / "complete").touch()
    return folder / "node_modules"


def run_program(command: list[str | Path], *arguments: str, environment: dict[str, str] | None = None) -> str:
    """What a program prints; the test fails with all of its output when the program does."""
    done = subprocess.run(
        [*map(str, command), *arguments],
        capture_output=True,
        text=True,
        timeout=100,
        env={"PATH": os.environ["PATH"], "HOME": str(Path.home()), "NO_PROXY": "*", **(environment or {})},
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def _folder(*parts: str) -> Path:
    return CACHE / f"{parts[0]}-{hashlib.sha256(' '.join(parts).encode()).hexdigest()[:12]}"


def _install(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_TIMEOUT_S, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        pytest.skip(f"not installed within {INSTALL_TIMEOUT_S} s: {' '.join(command[-3:])}")
    if done.returncode != 0:
        pytest.skip(f"can't be installed here: {' '.join(command)}: {done.stderr.strip()[-300:]}")

"""The tutorial's steps run as written, on a free port, and bring what is shown below them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from streamserve.process.server_process import ServerProcess, free_port, serve_command

ROOT = Path(__file__).resolve().parents[2]
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "TUTORIAL.md").read_text(encoding="utf-8"), re.DOTALL)
STEPS = [
    (kind, source, shown)
    for (kind, source), (_, shown) in pairwise(BLOCKS)
    if kind in ("sh", "python") and ("localhost:8000" in source or "streamserve-client" in source) and "/metrics" not in source
]


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    port = free_port()
    with ServerProcess(serve_command(port, "--model", "demo", "--max-model-len", "2048"), port) as server:
        yield server.base_url


def shape(text: str) -> Any:
    """What an answer holds, less ids, times and texts."""
    text = text.strip()
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    try:
        return [_keys(json.loads(line)) for line in lines if line != "[DONE]"]
    except ValueError:
        return _keys(json.loads(text))


def _keys(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _keys(item) for name, item in value.items()}
    return [_keys(item) for item in value] if isinstance(value, list) else type(value).__name__


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "source", "shown"), STEPS)
def test_each_step_brings_what_is_shown(kind: str, source: str, shown: str, base_url: str) -> None:
    source = source.replace("http://localhost:8000", base_url).replace("curl ", "curl -sS ")
    command = [sys.executable, "-c", source] if kind == "python" else ["bash", "-e", "-c", source]
    environment = {
        **os.environ,
        "STREAMSERVE_BASE_URL": base_url,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    if shown.lstrip().startswith(("{", "data: ")):
        assert shape(done.stdout.replace("}{", "}\n{")) == shape(shown)
    else:
        assert done.stdout.strip()
        assert ("Paris" in done.stdout) == ("Paris" in shown)

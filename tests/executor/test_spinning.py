"""Threads are told how long to wait before torch starts them, and only where nobody has said it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from streamserve.executor.spinning import COMPILED_SPIN_COUNT, SPIN_COUNT

SAY = """
import os, sys
from streamserve.config import EngineConfig
from streamserve.executor.spinning import bound_spinning
bound_spinning(EngineConfig(model="demo", enforce_eager="eager" in sys.argv))
print(os.environ.get("GOMP_SPINCOUNT"))
"""


def said(cache: Path, *arguments: str, **environment: str) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")}
    done = subprocess.run(
        [sys.executable, "-c", SAY, *arguments],
        env=clean | {"XDG_CACHE_HOME": str(cache)} | environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip()


def test_they_wait_longer_where_layers_are_compiled(tmp_path: Path) -> None:
    assert said(tmp_path) == SPIN_COUNT
    (tmp_path / "streamserve" / "compiled").mkdir(parents=True)
    assert said(tmp_path) == COMPILED_SPIN_COUNT
    assert said(tmp_path, "eager") == SPIN_COUNT


@pytest.mark.parametrize(
    ("environment", "expected"), [({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "PASSIVE"}, "None")]
)
def test_what_the_environment_says_stays(environment: dict[str, str], expected: str, tmp_path: Path) -> None:
    assert said(tmp_path, **environment) == expected

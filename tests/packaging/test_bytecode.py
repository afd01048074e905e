"""Bytecode is kept in a folder of ours exactly where Python would keep none, for this process and those it starts."""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TELL = """
import json, sys
from streamserve.process.bytecode import keep_bytecode
from streamserve.process.child import environment
keep_bytecode()
mine = environment()
print(json.dumps([sys.pycache_prefix, mine.get("PYTHONPYCACHEPREFIX"), mine.get("PYTHONDONTWRITEBYTECODE")]))
"""


@pytest.fixture
def torch_of_two_files(tmp_path: Path) -> Path:
    package = tmp_path / "site" / "torch"
    (package / "nn" / "deep").mkdir(parents=True)
    for file in (package / "__init__.py", package / "nn" / "layers.py", package / "nn" / "deep" / "rare.py"):
        file.write_text("x = 1\n")
    return package


def python(*arguments: str, site: Path, **variables: str) -> str:
    cleaned = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    cleaned |= {"PYTHONPATH": f"{site}{os.pathsep}{ROOT}", "XDG_CACHE_HOME": str(site.parent / "cache"), **variables}
    return subprocess.run(
        [sys.executable, *arguments], env=cleaned, capture_output=True, text=True, check=True, timeout=60
    ).stdout


def test_where_python_writes_none_it_goes_to_our_folder(torch_of_two_files: Path) -> None:
    site = torch_of_two_files.parent
    folder = str(site.parent / "cache" / "streamserve" / "bytecode")
    assert json.loads(python("-c", TELL, site=site, PYTHONDONTWRITEBYTECODE="1")) == [folder, folder, None]


def test_where_python_writes_it_or_it_is_there_nothing_changes(torch_of_two_files: Path) -> None:
    site = torch_of_two_files.parent
    assert json.loads(python("-c", TELL, site=site)) == [None, None, None]
    py_compile.compile(str(torch_of_two_files / "__init__.py"))
    assert json.loads(python("-c", TELL, site=site, PYTHONDONTWRITEBYTECODE="1")) == [None, None, "1"]


def test_the_upper_levels_are_compiled_by_the_program(torch_of_two_files: Path) -> None:
    site = torch_of_two_files.parent
    python("-m", "streamserve.process.bytecode", site=site, PYTHONPYCACHEPREFIX=str(site.parent / "kept"))
    kept = {file.name.split(".")[0] for file in (site.parent / "kept").rglob("torch/**/*.pyc")}
    assert kept == {"__init__", "layers"}

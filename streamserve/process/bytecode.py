"""Keeps Python's bytecode in the user's cache where it would be lost: torch alone is 700 files, which take seconds to compile.

Package managers that leave bytecode out, and PYTHONDONTWRITEBYTECODE in container images, are common; together they make every
start compile everything. For processes that belong to this program; must run before anything slow is imported. As a program,
`python -m streamserve.process.bytecode` compiles on every core what `import` would compile on one.
"""

from __future__ import annotations

import multiprocessing
import os
import py_compile
import sys
from importlib.util import cache_from_source, find_spec
from pathlib import Path

from streamserve.process.cache import cache_folder, make_private, require_private
from streamserve.process.child import start_module

_PACKAGES = ("torch", "numpy", "triton")
_MOST_PROCESSES = 16


def keep_bytecode() -> None:
    """Have this process, and those it starts, keep bytecode in the user's cache if torch's is kept nowhere."""
    if sys.pycache_prefix is None and _is_lost("torch") and _is_private(folder := cache_folder("bytecode")):
        sys.pycache_prefix = str(folder)
        sys.dont_write_bytecode = False


def compile_ahead() -> None:
    """Start processes that compile torch ahead of the import that follows, if the user's cache lacks its bytecode."""
    if sys.pycache_prefix == str(cache_folder("bytecode")) and not _has_bytecode("torch"):
        start_module("streamserve.process.bytecode")


def main() -> None:
    """Compile the upper two levels of the packages that take longest, the largest files first; below, most are not imported."""
    files = [file for package in _PACKAGES for file in _upper_files(package)]
    files.sort(key=lambda file: -file.stat().st_size)
    with multiprocessing.get_context("fork").Pool(min(len(os.sched_getaffinity(0)), _MOST_PROCESSES)) as pool:
        pool.map(_compile, files, chunksize=1)


def _upper_files(package: str) -> list[Path]:
    spec = find_spec(package)
    folders = [Path(folder) for folder in (spec.submodule_search_locations if spec else None) or ()]
    return [file for folder in folders for pattern in ("*.py", "*/*.py") for file in folder.glob(pattern)]


def _compile(file: Path) -> None:
    if not Path(cache_from_source(str(file))).exists():
        py_compile.compile(str(file), quiet=2)


def _is_private(folder: Path) -> bool:
    """Whether a folder is there, or can be made, that only this user writes to."""
    try:
        make_private(folder)
        require_private(folder)
    except OSError:
        return False
    return True


def _is_lost(package: str) -> bool:
    """Whether a package has no bytecode, and importing it would leave none."""
    return not _has_bytecode(package) and (sys.dont_write_bytecode or not os.access(_folder(package), os.W_OK))


def _has_bytecode(package: str) -> bool:
    spec = find_spec(package)
    return spec is None or spec.cached is None or Path(spec.cached).exists()


def _folder(package: str) -> Path:
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


if __name__ == "__main__":
    main()

"""Fail points: places where a test makes the world fail, in whichever process of a program the place is.

A test puts faults into a folder with `arm`; each is had once, by the first process that comes to its place. A process learns
of the folder when it starts, by the environment variable `VARIABLE`, or, the test's own, by `faults_from`. Without one nothing
ever fails here, which a call finds out in 0.1 µs. Blocking calls on files, in tests only.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

VARIABLE = "STREAMSERVE_FAIL_POINTS"
STALL_INTERVAL_S = 60.0

_folder: Path | None = Path(os.environ[VARIABLE]) if VARIABLE in os.environ else None


def fail_point(name: str, error: type[Exception], *arguments: object, size: int = 0) -> None:
    """Raise `error(*arguments)` if a test has armed `name` for work of this size."""
    if _folder is not None and _is_due(_folder, name, size):
        raise error(*arguments)


def cut_point(name: str, data: bytes) -> bytes:
    """`data`, or its first half if a test has armed `name`."""
    if _folder is not None and _is_due(_folder, name, len(data)):
        return data[: len(data) // 2]
    return data


def stall_point(name: str) -> None:
    """Never return if a test has armed `name`."""
    if _folder is not None and _is_due(_folder, name, 0):
        while True:
            time.sleep(STALL_INTERVAL_S)


@contextmanager
def faults_from(folder: Path) -> Iterator[None]:
    """Have the faults of this folder in this process while the block runs."""
    global _folder
    before, _folder = _folder, folder
    try:
        yield
    finally:
        _folder = before


def arm(folder: Path, name: str, *, times: int = 1, at_least: int = 0) -> None:
    """Have the next `times` calls of the fail point `name` fail whose size is `at_least` so large."""
    folder.mkdir(exist_ok=True)
    for _ in range(times):
        number = len(list(folder.iterdir()))
        (folder / f".{name}.{number}").write_text(json.dumps(at_least))
        (folder / f".{name}.{number}").rename(folder / f"{name}.{number}")


def disarm(folder: Path, name: str) -> int:
    """Take back the faults that nothing has had; returns how many those were."""
    armed = list(folder.glob(f"{name}.*"))
    for fault in armed:
        fault.unlink(missing_ok=True)
    return len(armed)


def _is_due(folder: Path, name: str, size: int) -> bool:
    # Whoever removes the file has the fault. Without descriptors to look with there is none.
    with suppress(OSError):
        for fault in folder.glob(f"{name}.*"):
            if size >= json.loads(fault.read_text()):
                fault.unlink()
                return True
    return False

"""Fail points: places where a test makes the world fail, in whichever process of a program the place is.

A test names a folder in the environment variable `VARIABLE` and puts faults into it with `arm`; each is had once, by the first
process that comes to its place. Without the variable nothing ever fails here. Blocking calls on files, in tests only.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from pathlib import Path

VARIABLE = "STREAMSERVE_FAIL_POINTS"


def fail_point(name: str, error: type[Exception], *arguments: object, size: int = 0) -> None:
    """Raise `error(*arguments)` if a test has armed `name` for work of this size."""
    if VARIABLE in os.environ and _is_due(Path(os.environ[VARIABLE]), name, size):
        raise error(*arguments)


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
    for fault in folder.glob(f"{name}.*"):
        with suppress(FileNotFoundError):
            if size >= json.loads(fault.read_text()):
                # Whoever removes the file has the fault.
                fault.unlink()
                return True
    return False

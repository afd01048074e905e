"""Finding every process that a test started, whatever became of its parent: by a mark in its environment."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path


def processes_with(marker: str) -> list[int]:
    """The processes, zombies aside, whose environment carries the marker."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if f"MARKER={marker}".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def wait_for(marker: str, count: int, timeout_s: float = 30.0) -> None:
    """Until there are so many."""
    deadline = time.monotonic() + timeout_s
    while len(processes_with(marker)) < count:
        assert time.monotonic() < deadline, f"{processes_with(marker)} after {timeout_s} s"
        time.sleep(0.01)


def assert_gone(marker: str) -> None:
    """A killed process takes a moment to be gone."""
    deadline = time.monotonic() + 5
    while (left := processes_with(marker)) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert left == []

"""Temporary folders that go with their owner, even one that was killed: the next owner to come removes what that one left.

A folder has a file that its owner keeps locked; the lock goes when the process does, however it ends. A stopped process does
not notice the end of the one that started it, so a folder also names processes that are to end with it. Blocking calls of
microseconds.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

from streamserve.fail_points import fail_point

DISK_WRITE = "disk_write"
"""The fail point of a file that can't be written."""

PREFIX = "streamserve-"
_LOCK, _PROCESSES = "owner", "processes"


class OwnedFolder:
    """A new folder, for this user only, until `remove` or the end of this process. Removes abandoned ones first."""

    def __init__(self) -> None:
        remove_abandoned()
        self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
        unlocked = self.path / f"{_LOCK}.new"
        self._lock = os.open(unlocked, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        # Locked before it has the name that others look for.
        unlocked.rename(self.path / _LOCK)

    def name_process(self, pid: int) -> None:
        """Have a process that outlives this one killed when the folder is found abandoned."""
        started_at = _started_at(pid)
        if started_at is not None:
            # A full disk must not keep a process from being started.
            with suppress(OSError), (self.path / _PROCESSES).open("a") as file:
                fail_point(DISK_WRITE, OSError, errno.ENOSPC, "no space left, as a test asked for")
                file.write(f"{pid} {started_at}\n")

    def remove(self) -> None:
        """Delete the folder and all that is in it. Idempotent."""
        if self._lock >= 0:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(self._lock)
            self._lock = -1


def remove_abandoned() -> None:
    """Remove this user's folders whose owners are gone, and kill the processes that they name."""
    for lock in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{_LOCK}"):
        # Another process may remove the same one meanwhile.
        with suppress(OSError):
            if lock.parent.stat().st_uid == os.geteuid() and not lock.parent.is_symlink():
                _remove_if_abandoned(lock)


def _remove_if_abandoned(lock: Path) -> None:
    descriptor = os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _kill_named(lock.parent / _PROCESSES)
            shutil.rmtree(lock.parent, ignore_errors=True)
    finally:
        os.close(descriptor)


def _kill_named(processes: Path) -> None:
    if not processes.exists():
        return
    for line in processes.read_text().splitlines():
        pid, _, started_at = line.partition(" ")
        # A number may have gone to another process.
        if pid.isdigit() and _started_at(int(pid)) == started_at:
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


def _started_at(pid: int) -> str | None:
    """When a process started, in the kernel's ticks; None where it is gone, and on systems that do not say."""
    try:
        # The name before may hold anything, parentheses too: field 22 is the 20th after it.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except (OSError, IndexError):
        return None

"""`streamserve serve` in a real process of its own, as a user starts it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class ServeProcess:
    """A server that was started; its log is what it has printed so far."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    @property
    def base_url(self) -> str:
        """Known once it listens."""
        found = self._until(lambda: re.search(r"(http://\S+) answers /live", self.log))
        return found[1]

    @property
    def children(self) -> list[int]:
        """Processes it has started and that still run."""
        found = subprocess.run(["pgrep", "-P", str(self._process.pid)], capture_output=True, text=True, check=False)
        return [int(pid) for pid in found.stdout.split()]

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self, module: str) -> list[int]:
        """Those of its children that run a module."""
        return running(self.children, module)

    def wait_for_children(self) -> list[int]:
        """Those that there are when there are any."""
        return self._until(lambda: self.children or None)

    def wait_ready(self) -> None:
        self.wait_for_log("Ready: ")

    def wait_for_log(self, text: str) -> None:
        self._until(lambda: text in self.log or None)

    def signal(self, number: int) -> None:
        """To the whole group, as a terminal or a supervisor sends it."""
        os.killpg(self._process.pid, number)

    def wait(self, timeout_s: float = 30.0) -> int:
        """Its exit status."""
        return self._process.wait(timeout_s)

    def wait_for(self, condition: Callable[[], bool]) -> None:
        self._until(lambda: condition() or None)

    def _until(self, look: Callable[[], T | None], timeout_s: float = 90.0) -> T:
        deadline = time.monotonic() + timeout_s
        while (found := look()) is None:
            if self._process.poll() is not None:
                raise AssertionError(f"the server left with status {self._process.returncode}:\n{self.log}")
            if time.monotonic() > deadline:
                raise AssertionError(f"not in {timeout_s} s:\n{self.log}")
            time.sleep(0.02)
        return found


@contextmanager
def serve_process(*arguments: str) -> Iterator[ServeProcess]:
    """Run `streamserve serve` with these arguments on a free port; killed on the way out if it still runs."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        command = [sys.executable, "-m", "streamserve", "serve", "--port", "0", "--host", "127.0.0.1", *arguments]
        with log.open("wb") as output:
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                process_group=0,
            )
        server = ServeProcess(process, log)
        try:
            yield server
        finally:
            if process.poll() is None:
                for child in server.children:
                    os.kill(child, signal.SIGKILL)
                process.kill()
                process.wait()


def is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def engine_of(children: list[int]) -> int:
    """The engine among the processes of a server."""
    return running(children, "streamserve.engine.process.main")[0]


def running(processes: list[int], module: str) -> list[int]:
    """Those that run a module; others may end meanwhile."""
    found = []
    for pid in processes:
        with suppress(OSError), open(f"/proc/{pid}/cmdline", "rb") as command:
            if module.encode() in command.read():
                found.append(pid)
    return found

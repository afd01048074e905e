"""A server as a child process: start it, wait until it is ready, stop it and everything it started.

For the demo and the benchmarks. Works with any server that answers 200 on some path once it is ready.
"""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from streamserve.errors import Unavailable

STOP_TIMEOUT_S = 15.0
POLL_S = 0.02


class ServerProcess:
    """A server in a process group of its own; the end of the `with` block ends the whole group.

    command    the command line; it must make the server listen on `port` of 127.0.0.1
    ready_path answered with 200 once the server takes requests
    timeout_s  how long that may take

    Entering the block raises `Unavailable`, with the end of the server's output, when it does not become ready.
    """

    def __init__(self, command: Sequence[str], port: int, *, ready_path: str = "/ready", timeout_s: float = 300.0) -> None:
        self.base_url = f"http://127.0.0.1:{port}"
        self.ready_s = 0.0
        self._command = list(command)
        self._port = port
        self._ready_path = ready_path
        self._timeout_s = timeout_s
        self._process: subprocess.Popen[bytes] | None = None
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `stop`

    def __enter__(self) -> Self:
        self._started_s = time.perf_counter()
        try:
            with _blocked_signals():
                self._process = subprocess.Popen(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    stdout=self._log,
                    stderr=self._log,
                    start_new_session=True,
                    preexec_fn=_unblock_signals,
                )
            self._wait_until_ready(self._process)
        except BaseException:
            self.stop()
            raise
        self.ready_s = self.age_s
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.stop()

    @property
    def age_s(self) -> float:
        """Seconds since the process was started."""
        return time.perf_counter() - self._started_s

    def _wait_until_ready(self, process: subprocess.Popen[bytes]) -> None:
        while self.age_s < self._timeout_s:
            if process.poll() is not None:
                raise Unavailable(f"the server ended with exit code {process.returncode}:\n{self._log_tail()}")
            if self._answers():
                return
            time.sleep(POLL_S)
        raise Unavailable(f"the server was not ready after {self._timeout_s:.0f} s:\n{self._log_tail()}")

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", self._ready_path)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _log_tail(self, size: int = 4000) -> str:
        end = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, max(0, end - size)).decode("utf-8", "replace").strip()

    def stop(self) -> None:
        """Terminate the group, then kill what is left of it. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        _signal_group(process, signal.SIGTERM)
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            print("the server did not stop in time; killing it", file=sys.stderr)
        finally:
            _signal_group(process, signal.SIGKILL)
            process.wait()
            self._log.close()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


_ENDING = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP}


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    # A signal whose handler raised inside Popen, after the fork, would orphan the server.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _unblock_signals() -> None:
    """In the child: blocked signals would stay blocked across exec."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def free_port() -> int:
    """A free port of 127.0.0.1."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def serve_command(port: int, *arguments: str) -> list[str]:
    """The command that runs `streamserve serve` with this interpreter."""
    return [sys.executable, "-m", "streamserve", "serve", "--host", "127.0.0.1", "--port", str(port), *arguments]

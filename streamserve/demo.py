"""`make demo`: serve the demo model on a free port, stream two answers from it through the client's command line, stop.

Runs only processes: the server in a group of its own, so that whatever ends this script (a failure, Ctrl-C, a signal) ends the
server and all its children with it.
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
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

QUESTIONS = ("What is the capital of France, and what is it known for?", "描述一下北京的秋天")
NOTE = (
    "The demo model is SmolLM2-135M, small enough to come with a Python package. It knows English; its Chinese is nonsense:\n"
    "a real answer to the second question needs a model such as Qwen3 (streamserve serve --model Qwen/Qwen3-0.6B)."
)
START_TIMEOUT_S = 180.0
STOP_TIMEOUT_S = 15.0


def main() -> None:
    """Exit code 0 when both answers came whole."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _leave)
    try:
        with server() as base_url:
            for question in QUESTIONS:
                ask(question, base_url)
    except KeyboardInterrupt:
        sys.exit(130)
    except DemoFailed as error:
        sys.exit(f"demo: {error}")
    print(f"\n{NOTE}")


class DemoFailed(Exception):
    """The demo can't go on; the message says why."""


def _leave(number: int, frame: FrameType | None) -> NoReturn:
    sys.exit(128 + number)


@contextlib.contextmanager
def server() -> Iterator[str]:
    """The base URL of a server that is ready; stopped on the way out."""
    port = free_port()
    command = [sys.executable, "-m", "streamserve", "serve", "--model", "demo", "--host", "127.0.0.1", "--port", str(port)]
    with tempfile.TemporaryFile() as log:
        started = time.perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
        try:
            print("$ streamserve serve --model demo", flush=True)
            wait_until_ready(process, port, log.fileno())
            print(f"  ready after {time.perf_counter() - started:.1f} s", flush=True)
            yield f"http://127.0.0.1:{port}"
        finally:
            stop(process)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def wait_until_ready(process: subprocess.Popen[bytes], port: int, log: int) -> None:
    """Returns once `/ready` says 200. Raises `DemoFailed`, with the end of the server's log, when that does not come."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoFailed(f"the server left with exit code {process.returncode}:\n{_tail(log)}")
        if is_ready(port):
            return
        time.sleep(0.1)
    raise DemoFailed(f"the server was not ready after {START_TIMEOUT_S:.0f} s:\n{_tail(log)}")


def _tail(log: int, size: int = 4000) -> str:
    end = os.fstat(log).st_size
    return os.pread(log, size, max(0, end - size)).decode("utf-8", "replace")


def ask(question: str, base_url: str) -> None:
    """One answer, streamed to the terminal, with its TTFT and tokens/s. Raises `DemoFailed` when the client failed."""
    print(f'\n$ streamserve-client chat "{question}" --stats', flush=True)
    options = ["--stats", "--max-tokens", "96", "--temperature", "0", "--base-url", base_url]
    client = subprocess.run(
        [sys.executable, "-m", "streamserve_client.cli", "chat", question, *options], stdin=subprocess.DEVNULL
    )
    if client.returncode != 0:
        raise DemoFailed(f"streamserve-client left with exit code {client.returncode}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server and everything it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        print("demo: the server did not stop by itself and is killed", file=sys.stderr)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    main()

"""`python -m loadtest.run`: start a server, run the load test against it, stop the server; further arguments are Locust's.

Exits with the load test's status: 0 when every threshold was kept.
"""

from __future__ import annotations

import http.client
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

START_TIMEOUT_S = 300.0
STOP_TIMEOUT_S = 60.0
LOCUSTFILE = Path(__file__).with_name("locustfile.py")


def main() -> int:
    """Run the load test; returns its exit status."""
    with serving() as (url, pid):
        # Users that the shape takes away finish what they have begun.
        quiet = ["--headless", "--stop-timeout", "60", "--only-summary", "--loglevel", "WARNING"]
        locust = [sys.executable, "-m", "locust", "-f", os.path.relpath(LOCUSTFILE)]
        command = [*locust, "--host", url, "--server-pid", str(pid), *quiet, *sys.argv[1:]]
        return subprocess.run(command, check=False).returncode


@contextmanager
def serving(*arguments: str) -> Iterator[tuple[str, int]]:
    """Serve the model that the environment names as MODEL, else the demo model; yields the address and the process.

    arguments  for the server, before those that the environment has as SERVE
    """
    port, model = _free_port(), os.environ.get("MODEL", "demo")
    command = [sys.executable, "-m", "streamserve", "serve", model, "--port", str(port), "--disable-uvicorn-access-log"]
    server = subprocess.Popen(
        [*command, *arguments, *shlex.split(os.environ.get("SERVE", ""))], stdin=subprocess.DEVNULL, process_group=0
    )
    try:
        _wait_until_ready(server, port)
        yield f"http://127.0.0.1:{port}", server.pid
    finally:
        _stop(server)


def _wait_until_ready(server: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _answers(port):
        if server.poll() is not None:
            sys.exit(f"the server ended with status {server.returncode}")
        if time.monotonic() > deadline:
            sys.exit(f"the server was not ready after {START_TIMEOUT_S:g} s")
        time.sleep(0.1)


def _answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/ready")
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def _stop(server: subprocess.Popen[bytes]) -> None:
    if server.poll() is None:
        os.killpg(server.pid, signal.SIGTERM)
    try:
        server.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as bound:
        port: int = bound.getsockname()[1]
        return port


if __name__ == "__main__":
    sys.exit(main())

"""A server whose log can't be written: full disks, readers that have left, descriptors that were closed."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time

import httpx
import pytest

WRITES = """
from streamserve.process.error_stream import error_stream, open_standard_descriptors
open_standard_descriptors()
stream = error_stream()
for line in range(3):
    print("lost " * 20_000, file=stream, flush=True)
"""

OPENS = """
import os, socket, sys
from streamserve.process.error_stream import open_standard_descriptors
open_standard_descriptors()
assert socket.socket().fileno() > 2
"""


@pytest.mark.parametrize("redirected", ["2>/dev/full", "2>&-", "0<&- 1>&- 2>&-"])
def test_a_line_that_cannot_be_written_is_lost_and_nothing_else(redirected: str) -> None:
    assert run_in_shell(WRITES, redirected) == 0


def test_a_reader_that_has_left_costs_the_lines_alone() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    try:
        assert subprocess.run([sys.executable, "-c", WRITES], stderr=writer, check=False).returncode == 0
    finally:
        os.close(writer)


@pytest.mark.parametrize("closed", ["0<&-", "1>&-", "2>&-", "0<&- 1>&- 2>&-"])
def test_no_socket_takes_the_number_of_a_closed_standard_stream(closed: str) -> None:
    assert run_in_shell(OPENS, closed) == 0


@pytest.mark.slow
@pytest.mark.parametrize("redirected", ["2>/dev/full", "1>&- 2>&-", "2> >(head -c 10 >/dev/null)"])
def test_a_server_without_a_log_serves_restarts_its_engine_and_drains(redirected: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    serve = f"exec {sys.executable} -m streamserve serve demo --max-model-len 512 --host 127.0.0.1 --port {port} {redirected}"
    server = subprocess.Popen(["bash", "-c", serve], stdin=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_answer(client, server)
            engine = subprocess.run(
                ["pgrep", "-P", str(server.pid), "-f", "engine.process.main"], capture_output=True, text=True, check=True
            )
            os.kill(int(engine.stdout), signal.SIGKILL)
            while client.get("/ready").status_code == 200:
                assert server.poll() is None
            wait_answer(client, server)
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    finally:
        server.kill()
        server.wait()


def wait_answer(client: httpx.Client, server: subprocess.Popen[bytes]) -> None:
    """Until a completion comes."""
    deadline = time.monotonic() + 90
    while True:
        assert server.poll() is None, "the server has left"
        assert time.monotonic() < deadline
        try:
            if client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1}).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)


def run_in_shell(program: str, redirected: str) -> int:
    """The exit status of a Python program under a redirection of bash."""
    command = f'exec "$0" -c "$1" {redirected}'
    return subprocess.run(["bash", "-c", command, sys.executable, program], check=False).returncode

"""The snippets of docs/STREAMS.md, run one after another against one server, do what the page says."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from streamserve.process.server_process import ServerProcess, free_port, serve_command
from streamserve.server.delivery.delivery import MAX_RESUMABLE_BYTES
from streamserve.server.delivery.event_log import LogLimits
from streamserve.text.parsing.json_values import MAX_DEPTH, MAX_PATH_CHARS

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "STREAMS.md").read_text(encoding="utf-8")
BEGUN, CONTINUED, CLIENT, ASIDE, CANCELLED = re.findall(r"```(?:sh|python)\n(.*?)```", PAGE, re.DOTALL)


@pytest.fixture(scope="module")
def base_url() -> Iterator[str]:
    port = free_port()
    with ServerProcess(serve_command(port, "--model", "demo", "--max-model-len", "1024"), port) as server:
        yield server.base_url


def run(source: str, base_url: str) -> str:
    source = source.replace("http://localhost:8000", base_url).replace("curl ", "curl -sS ")
    command = [sys.executable, "-c", source] if "import" in source else ["bash", "-e", "-c", source]
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, env=os.environ)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_stream_goes_on_behind_the_last_event(base_url: str) -> None:
    whole = run(BEGUN, base_url)
    numbers = [int(number) for number in re.findall(r"^id: cmpl-story:(\d+)$", whole, re.MULTILINE)]
    assert numbers == list(range(len(numbers)))
    assert whole.endswith(run(CONTINUED, base_url))
    assert run(CONTINUED, base_url).startswith("id: cmpl-story:4\ndata: {")


@pytest.mark.slow
def test_the_client_streams_an_answer(base_url: str) -> None:
    assert len(run(CLIENT, base_url)) > 10


@pytest.mark.slow
def test_the_official_client_sees_progress_and_values(base_url: str) -> None:
    lines = run(ASIDE, base_url).splitlines()
    assert lines[0].startswith("progress: {'index': 0, 'state': ")
    paths = [line.partition("]")[0] + "]" for line in lines if line.startswith("[")]
    assert paths == ["[0, 'name']", "[0]", "[1, 'name']", "[1]"]


@pytest.mark.slow
def test_a_stream_is_cancelled(base_url: str) -> None:
    shown = run(CANCELLED, base_url)
    assert '"cancelled":true' in shown.replace(" ", "")
    assert '"finish_reason":"abort"' in shown


def test_the_bounds_are_those_of_the_program() -> None:
    limits = LogLimits()
    for bound in (
        f"{limits.max_events} events", f"{limits.max_bytes >> 20} MiB", f"{MAX_RESUMABLE_BYTES >> 20} MiB",
        f"{MAX_DEPTH} objects", f"{MAX_PATH_CHARS} characters",
    ):  # fmt: skip
        assert bound in PAGE.replace("\n", " "), bound

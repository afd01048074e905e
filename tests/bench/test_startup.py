"""`bench startup` starts a real server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from uuid import uuid4

import pytest
from click.testing import CliRunner

from streamserve.bench.commands import bench
from tests.support.marked_processes import assert_gone, wait_for


@pytest.mark.slow
def test_a_start_is_timed_to_its_first_token() -> None:
    done = CliRunner().invoke(bench, ["startup", "-r", "1", "--json", "--model", "demo", "--max-model-len", "256"])
    assert done.exit_code == 0, done.output
    row = json.loads(done.stdout)
    assert row["model"] == "demo"
    assert 0 < row["ready_s"] < row["first_token_s"] == row["slowest_s"]


def test_a_server_that_cannot_start_is_an_error_that_says_why() -> None:
    done = CliRunner().invoke(bench, ["startup", "-r", "1", "--model", "/no/such/folder"])
    assert done.exit_code != 0
    assert "/no/such/folder" in str(done.exception)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_bench_that_is_interrupted_takes_its_server_along(number: signal.Signals) -> None:
    marker = f"bench-{uuid4().hex}"
    command = [sys.executable, "-m", "streamserve", "bench", "startup", "--model", "demo", "--kv-cache-memory", "64M"]
    with subprocess.Popen(command, env={**os.environ, "MARKER": marker}) as bench_process:
        wait_for(marker, 2)
        bench_process.send_signal(number)
        assert bench_process.wait(60) != 0
    assert_gone(marker)

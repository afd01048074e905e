"""`bench startup` starts a real server."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from streamserve.bench.commands import bench


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

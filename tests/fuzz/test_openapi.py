"""schemathesis reads /openapi.json and sends what it allows, and what it does not."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys

import httpx
import pytest

from tests.fuzz.idle import wait_until_all_is_free

CHECKS = "not_a_server_error,status_code_conformance,content_type_conformance,response_schema_conformance"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_schemathesis_finds_nothing(server_url: str, client: httpx.Client) -> None:
    if importlib.util.find_spec("schemathesis") is None:
        pytest.skip("schemathesis is not installed: pip install -e '.[fuzz]'")
    program = "import sys; from schemathesis.cli import schemathesis; sys.exit(schemathesis())"
    options = [
        "--checks",
        CHECKS,
        "--phases",
        "examples,fuzzing",
        "--max-examples",
        "25",
        "--request-timeout",
        "20",
        "--no-color",
    ]
    command = [sys.executable, "-c", program, "run", f"{server_url}/openapi.json", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, env={**os.environ, "NO_PROXY": "*"})
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    wait_until_all_is_free(client)

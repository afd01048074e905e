"""One server for all clients: the demo model in a process of its own."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.serve_process import serve_process


@pytest.fixture(scope="session")
def demo_url() -> Iterator[str]:
    with serve_process("--model", "demo", "--max-model-len", "1024") as server:
        server.wait_ready()
        yield server.base_url

"""A whole server on a tiny random model, on a thread of its own: Hypothesis drives tests that block."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest
from anyio.from_thread import start_blocking_portal

from tests.support.tiny_server import tiny_server


@pytest.fixture(scope="module")
def server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("tiny-llama")
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(tiny_server(folder)) as server:
        yield server.base_url.removesuffix("/v1")


@pytest.fixture(scope="module")
def client(server_url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server_url, timeout=20, trust_env=False) as made:
        yield made

"""The chat page as a browser gets it."""

from __future__ import annotations

import re

import pytest

from tests.support.live_server import live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio


async def test_the_page_and_all_that_it_names_are_served_under_the_policy() -> None:
    async with live_server(ScriptedEngine(), api_keys=["secret"]) as server:
        async with request(server.port, "GET", "/") as response:
            assert response.status == 200
            assert response.headers["content-type"] == "text/html; charset=utf-8"
            html = (await response.body()).decode()
        named = re.findall(r'(?:href|src)="([^"]+)"', html)
        assert "chat/main.js" in named
        for path in named:
            async with request(server.port, "GET", f"/{path}") as response:
                assert response.status == 200, path
                assert "script-src 'self'" in response.headers["content-security-policy"]
                assert response.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("path", ["/chat/__init__.py", "/chat/absent.js", "/chat/../__init__.py", "/chat/%2e%2e/app.py"])
async def test_nothing_else_is_served(path: str) -> None:
    async with live_server(ScriptedEngine()) as server, request(server.port, "GET", path) as response:
        assert response.status == 404

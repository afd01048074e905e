"""Requests about responses without a client of theirs."""

from __future__ import annotations

import json
from typing import Any

from tests.support.live_server import LiveServer
from tests.support.raw_http import request


async def post(server: LiveServer, body: Any, path: str = "/v1/responses", method: str = "POST") -> tuple[int, dict[str, Any]]:
    async with request(server.port, method, path, body) as response:
        return response.status, json.loads(await response.body())

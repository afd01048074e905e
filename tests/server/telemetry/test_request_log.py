"""The request log: the shape and parameters of each request, and nothing that a client wrote."""

from __future__ import annotations

import logging

import httpx
import pytest

from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

BODY = {"prompt": "xyzzy", "max_tokens": 3, "temperature": 0.25, "stop": ["plugh"], "bad_words": ["frotz"], "ignore_eos": True}


@pytest.mark.parametrize("is_logged", [True, False])
async def test_requests_are_logged_without_their_texts_where_the_operator_wants_it(
    is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "streamserve.server")
    async with (
        live_server(ScriptedEngine(reply=text_reply("ok")), log_requests=is_logged) as server,
        httpx.AsyncClient(base_url=server.base_url, timeout=60) as client,
    ):
        answered = await client.post("/v1/completions", json=BODY)
    lines = [record.getMessage() for record in caplog.records if record.name == "streamserve.server"]
    if not is_logged:
        assert not lines
        return
    [line] = lines
    assert answered.json()["id"] in line
    for part in ("temperature=0.25", "max_tokens=3", "prompts=1", f"prompt_tokens={len('xyzzy')}", "ignore_eos=True"):
        assert part in line
    assert not any(text in line for text in ("xyzzy", "plugh", "frotz"))

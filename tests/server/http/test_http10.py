"""Clients of HTTP/1.0 know no chunks: their streams go on until the connection ends."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from tests.support.live_server import live_server
from tests.support.raw_http import events
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

TEXT = "北京🍂" * 20


async def answer(port: int, method: str, path: str, body: Any = None) -> tuple[bytes, bytes]:
    """Head and body, up to the end of the connection."""
    data = b"" if body is None else json.dumps(body).encode()
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(f"{method} {path} HTTP/1.0\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
        received = b""
        with anyio.fail_after(10):
            while True:
                try:
                    received += await stream.receive()
                except anyio.EndOfStream:
                    break
    head, _, rest = received.partition(b"\r\n\r\n")
    return head.lower(), rest


async def test_a_stream_comes_without_chunks_and_ends_with_the_connection() -> None:
    async with live_server(ScriptedEngine(reply=text_reply(TEXT))) as server:
        head, body = await answer(server.port, "POST", "/v1/completions", {"prompt": "p", "stream": True, "max_tokens": 900})
    assert b"transfer-encoding" not in head
    assert b"connection: close" in head
    *chunks, done = events(body)
    assert done == "[DONE]"
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == TEXT


async def test_a_whole_answer_has_its_length() -> None:
    async with live_server(ScriptedEngine(reply=text_reply(TEXT))) as server:
        head, body = await answer(server.port, "POST", "/v1/completions", {"prompt": "p", "max_tokens": 900})
        assert b"content-length: %d" % len(body) in head
        assert json.loads(body)["choices"][0]["text"] == TEXT
        for method, path in (("GET", "/health"), ("GET", "/metrics"), ("HEAD", "/"), ("GET", "/"), ("GET", "/nowhere")):
            head, body = await answer(server.port, method, path)
            assert b"transfer-encoding" not in head
            assert not body or b"content-length: %d" % len(body) in head

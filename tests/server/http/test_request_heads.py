"""Heads of requests: offers of other protocols are ignored, and heads that a proxy may read otherwise are refused."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest

from tests.server.ws.session import session
from tests.support.live_server import LiveServer, live_server
from tests.support.raw_http import RawResponse
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

BODY = json.dumps({"prompt": "p"}).encode()
H2C = b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA\r\n"
SIZED = b"Content-Length: %d\r\n\r\n%b" % (len(BODY), BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n5\r\n%b\r\n%x\r\n%b\r\n0\r\n\r\n" % (BODY[:5], len(BODY) - 5, BODY[5:])
POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\n"


async def answers(server: LiveServer, *pieces: bytes, count: int = 1) -> list[tuple[int, Any]]:
    """Status and JSON of the first answers to what is sent, piece by piece, over one connection."""
    found: list[tuple[int, Any]] = []
    async with await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        for piece in pieces:
            await stream.send(piece)
            await anyio.wait_all_tasks_blocked()
        response = RawResponse(stream)
        with anyio.fail_after(10):
            for _ in range(count):
                await response.read_head()
                found.append((response.status, json.loads(await response.body())))
    return found


def text_of(answer: tuple[int, Any]) -> str:
    status, body = answer
    assert status == 200, body
    return str(body["choices"][0]["text"])


@pytest.mark.parametrize("body", [SIZED, CHUNKED], ids=["sized", "chunked"])
@pytest.mark.parametrize("offer", [H2C, b"Upgrade: TLS/1.0\r\nConnection: upgrade\r\n"], ids=["h2c", "tls"])
async def test_an_offer_of_another_protocol_is_ignored(body: bytes, offer: bytes) -> None:
    """`curl --http2` and Java's HttpClient offer h2c with each POST, which got 400 "Input data was truncated"."""
    async with live_server(ScriptedEngine(reply=text_reply("fine"))) as server:
        request = POST + offer + body
        assert [text_of(each) for each in await answers(server, request)] == ["fine"]
        assert [text_of(each) for each in await answers(server, *(bytes([byte]) for byte in request))] == ["fine"]
        # What follows on the connection is read like the first.
        follows = await answers(server, request + request + POST + SIZED, count=3)
        assert [text_of(each) for each in follows] == ["fine"] * 3


async def test_a_request_without_a_body_may_offer_another_protocol() -> None:
    async with live_server(ScriptedEngine()) as server:
        [(status, models)] = await answers(server, b"GET /v1/models HTTP/1.1\r\nHost: a\r\n" + H2C + b"\r\n")
        assert (status, models["object"]) == (200, "list")
        async with session(server.port) as client:
            await client.send({"type": "ping"})
            assert (await client.receive())["type"] == "pong"


@pytest.mark.parametrize(
    "head",
    [
        b"POST /v1/completions HTTP/1.1\r\n" + SIZED,
        POST + b"Host: b\r\n" + SIZED,
        POST + b"Transfer-Encoding: chunked\r\n" + CHUNKED,
        POST + CHUNKED.replace(b"chunked", b"chunked, chunked"),
        POST + CHUNKED.replace(b"chunked", b"gzip, chunked"),
        POST + b"Content-Length: 5\r\n" + CHUNKED,
        POST + b"Content-Length: 5\r\n" + SIZED,
        POST.replace(b"1.1", b"1.0") + CHUNKED,
        b"CONNECT /v1/completions HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n" + H2C + b"\r\n",
    ],
    ids=["no host", "two hosts", "chunked twice", "twice in one", "gzip", "both", "two sizes", "1.0", "CONNECT", "proxy"],
)
async def test_a_head_that_a_proxy_may_read_otherwise_is_refused(head: bytes) -> None:
    engine = ScriptedEngine(reply=text_reply("fine"))
    async with live_server(engine) as server:
        [(status, body)] = await answers(server, head)
        assert (status, body["error"]["code"]) == (400, "invalid_request")
    assert not engine.specs


async def test_a_long_head_is_refused_though_it_is_read_at_once() -> None:
    async with live_server(ScriptedEngine()) as server:
        [(status, body)] = await answers(
            server, b"GET /v1/models HTTP/1.1\r\nHost: a\r\nX-Long: " + b"x" * 65_600 + b"\r\n\r\n"
        )
        assert (status, body["error"]["code"]) == (431, "headers_too_large")

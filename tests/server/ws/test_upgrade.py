"""Who gets a socket, and what those are told who don't."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import anyio
import pytest
from websockets.exceptions import InvalidStatus

from tests.server.ws.session import session
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio


async def refusal(port: int, **options: Any) -> tuple[int, dict[str, Any], str | None]:
    """The status, error object and Retry-After of an upgrade that is refused."""
    with pytest.raises(InvalidStatus) as refused:
        async with session(port, **options):
            raise AssertionError("the upgrade was accepted")
    response = refused.value.response
    assert response.headers["Content-Type"] == "application/json"
    return response.status_code, json.loads(response.body)["error"], response.headers.get("Retry-After")


@pytest.mark.parametrize("path", ["/v1/ws", "/v1/responses"])
async def test_a_key_comes_as_header_or_as_subprotocol_and_is_never_echoed(path: str) -> None:
    async with live_server(ScriptedEngine(reply=text_reply("in")), api_keys=["secret"]) as server:
        async with session(server.port, path, additional_headers={"Authorization": "Bearer secret"}) as client:
            assert client.connection.subprotocol is None
        async with session(server.port, path, subprotocols=["realtime", "openai-insecure-api-key.secret"]) as client:
            assert client.connection.subprotocol == "realtime"
            await client.chat("s")
            await client.ending("s")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"additional_headers": {"Authorization": "Bearer wrong"}},
        {"subprotocols": ["realtime", "openai-insecure-api-key.wrong"]},
    ],
    ids=["none", "header", "subprotocol"],
)
async def test_without_the_right_key_the_upgrade_is_a_401(options: dict[str, Any]) -> None:
    async with live_server(ScriptedEngine(), api_keys=["secret"]) as server:
        status, error, _ = await refusal(server.port, **options)
    assert (status, error["code"]) == (401, "invalid_api_key")
    assert "secret" not in json.dumps(error)


@pytest.mark.parametrize("path", ["/v1/nothing", "/v1/models", "/"])
async def test_a_path_without_sockets_is_a_404_that_names_those_there_are(path: str) -> None:
    async with live_server(ScriptedEngine()) as server:
        status, error, _ = await refusal(server.port, path=path)
    assert (status, error["code"]) == (404, "not_found")
    assert "/v1/ws" in error["message"]


async def test_a_server_without_room_says_429_and_when_to_come_back() -> None:
    async with live_server(ScriptedEngine(), max_sockets=1) as server:
        async with session(server.port):
            status, error, retry_after = await refusal(server.port)
            assert (status, error["code"]) == (429, "too_many_sockets")
            assert retry_after is not None
        await server.service.sockets.wait_idle()
        async with session(server.port):
            assert len(server.service.sockets) == 1


UPGRADE = "Host: test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
KEY = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"


@pytest.mark.parametrize(
    "head",
    [
        "GET /v1/ws HTTP/1.1\r\n" + UPGRADE,
        "GET /v1/ws HTTP/1.1\r\n" + UPGRADE.replace("13", "12") + KEY,
        "POST /v1/ws HTTP/1.1\r\n" + UPGRADE + KEY,
        "GET /v1/ws HTTP/1.0\r\n" + UPGRADE + KEY,
        "GET /v1/ws HTTP/1.1\r\n" + UPGRADE + KEY + "Cookie: " + "c" * 9000 + "\r\n",
        "GET /v1/ws HTTP/1.1\r\n" + UPGRADE + KEY + "A: b\r\n" * 200,
        "GET /v1/ws HTTP/1.1\r\n" + UPGRADE + KEY + "Content-Length: 2\r\n\r\n{}",
    ],
)
async def test_a_handshake_that_is_none_is_answered_in_json_and_hung_up_on(head: str) -> None:
    async with live_server(ScriptedEngine()) as server, await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        await stream.send((head + "\r\n").encode())
        answer = b""
        with anyio.fail_after(5), suppress(anyio.EndOfStream):
            while True:
                answer += await stream.receive()
    status, _, rest = answer.partition(b"\r\n")
    error = json.loads(rest.partition(b"\r\n\r\n")[2])["error"]
    assert status.split()[1] in (b"400", b"405", b"414", b"431")
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}


async def test_a_refused_upgrade_is_no_fault_of_the_servers(caplog: pytest.LogCaptureFixture) -> None:
    async with live_server(ScriptedEngine(), api_keys=["key"]) as server:
        assert (await refusal(server.port))[0] == 401
    async with live_server(ScriptedEngine(), ready=False) as server:
        assert (await refusal(server.port))[0] == 503
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_an_upgrade_on_the_heels_of_a_stream_leaves_no_stream_behind() -> None:
    engine = ScriptedEngine()
    body = json.dumps({"prompt": "p", "stream": True, "max_tokens": 4000})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: test\r\nContent-Length: {len(body)}\r\n\r\n"
    async with live_server(engine) as server, await anyio.connect_tcp("127.0.0.1", server.port) as stream:
        await stream.send((head + body).encode())
        sequences = await engine.sequences()
        await stream.send(("GET /v1/ws HTTP/1.1\r\n" + UPGRADE + KEY + "\r\n").encode())
        assert await engine.aborts() == sequences


async def test_a_loading_server_says_503() -> None:
    async with live_server(ScriptedEngine(), ready=False) as server:
        status, error, retry_after = await refusal(server.port)
    assert (status, error["code"]) == (503, "unavailable")
    assert retry_after is not None


async def test_a_draining_server_says_503() -> None:
    async with live_server(ScriptedEngine()) as server:
        with anyio.fail_after(5):
            await server.service.drain(1)
        status, error, _ = await refusal(server.port)
    assert (status, error["code"]) == (503, "unavailable")

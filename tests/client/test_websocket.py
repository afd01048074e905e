"""`WebSocketSession` over a real socket whose server drops, refuses and cancels on cue."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.datastructures import Headers
from websockets.http11 import Request, Response

from streamserve_client import (
    AsyncClient,
    AuthenticationFailed,
    BadRequest,
    ConnectionFailed,
    RetryPolicy,
    StreamFailed,
    StreamInterrupted,
)
from tests.client.scripted_server import chat_chunk, completion_chunk

pytestmark = pytest.mark.anyio

FAST = RetryPolicy(base_s=0.0)
Script = Callable[[ServerConnection], Awaitable[None]]


@asynccontextmanager
async def server(*scripts: Script, refuse: Response | None = None) -> AsyncIterator[str]:
    """Each connection runs the next script; the URL to reach them."""
    remaining = list(scripts)

    async def connected(socket: ServerConnection) -> None:
        await remaining.pop(0)(socket)

    def check(socket: ServerConnection, request: Request) -> Response | None:
        return refuse or (None if request.path == "/v1/ws" else socket.respond(HTTPStatus.NOT_FOUND, "?"))

    async with serve(connected, "127.0.0.1", 0, process_request=check) as listening:
        port = next(iter(listening.sockets)).getsockname()[1]
        yield f"http://127.0.0.1:{port}"


async def receive(socket: ServerConnection) -> dict[str, Any]:
    message: dict[str, Any] = json.loads(await socket.recv())
    return message


async def send_chunks(socket: ServerConnection, stream_id: str, *texts: str, start: int = 0, kind: str = "completion") -> None:
    make = completion_chunk if kind == "completion" else chat_chunk
    for number, text in enumerate(texts, start):
        message = {"type": f"{kind}.chunk", "stream_id": stream_id, "sequence_number": number, "data": make(text)}
        await socket.send(json.dumps(message, ensure_ascii=False))


async def send_done(
    socket: ServerConnection, stream_id: str, number: int, status: str = "completed", kind: str = "completion"
) -> None:
    await socket.send(json.dumps({"type": f"{kind}.done", "stream_id": stream_id, "sequence_number": number, "status": status}))


def drop(socket: ServerConnection) -> None:
    socket.transport.abort()


async def test_two_streams_interleave_on_one_socket() -> None:
    async def script(socket: ServerConnection) -> None:
        chat, completion = await receive(socket), await receive(socket)
        assert (chat["type"], completion["type"]) == ("chat.completion.create", "completion.create")
        assert (completion["prompt"], completion["model"], completion["max_tokens"]) == ("p", "m", 4)
        await send_chunks(socket, chat["stream_id"], "秋", kind="chat.completion")
        await send_chunks(socket, completion["stream_id"], "a", "b")
        await send_chunks(socket, chat["stream_id"], "天", start=1, kind="chat.completion")
        await send_done(socket, chat["stream_id"], 2, kind="chat.completion")
        await send_done(socket, completion["stream_id"], 2)
        await socket.wait_closed()

    async with server(script) as url, AsyncClient(url).websocket() as session:
        chat = await session.stream_chat([{"role": "user", "content": "?"}], model="m")
        completion = await session.stream_completion("p", model="m", max_tokens=4)
        assert [text async for text in completion.text()] == ["a", "b"]
        assert [text async for text in chat.text()] == ["秋", "天"]
        assert chat.status == completion.status == "completed"


async def test_a_dropped_socket_is_resumed_where_it_was() -> None:
    async def first(socket: ServerConnection) -> None:
        asked = await receive(socket)
        assert asked["resumable"] is True
        await send_chunks(socket, asked["stream_id"], "a", "b")
        await half_read.wait()
        drop(socket)

    async def second(socket: ServerConnection) -> None:
        asked = await receive(socket)
        assert asked == {
            "type": "response.resume",
            "response_id": "cmpl-1",
            "starting_after": 1,
            "stream_id": asked["stream_id"],
        }
        await send_chunks(socket, asked["stream_id"], "b", "c", start=1)
        await send_done(socket, asked["stream_id"], 3)
        await socket.wait_closed()

    half_read = asyncio.Event()
    texts = []
    async with server(first, second) as url, AsyncClient(url, retry=FAST).websocket() as session:
        async with await session.stream_completion("p", model="m") as stream:
            async for text in stream.text():
                texts.append(text)
                if text == "b":
                    half_read.set()
    assert texts == ["a", "b", "c"]


async def test_a_create_that_crosses_a_restart_is_sent_again_on_another_socket() -> None:
    async def first(socket: ServerConnection) -> None:
        asked.append(await receive(socket))
        await socket.close(1001, "the server is being restarted: connect again")

    async def second(socket: ServerConnection) -> None:
        resume = await receive(socket)
        error = {"message": "no events of this response are kept", "type": "invalid_request_error", "code": "resume_gap"}
        await socket.send(json.dumps({"type": "error", "stream_id": resume["stream_id"], "status": 404, "error": error}))
        asked.append(await receive(socket))
        await send_chunks(socket, resume["stream_id"], "whole")
        await send_done(socket, resume["stream_id"], 1)
        await socket.wait_closed()

    asked: list[dict[str, Any]] = []
    async with server(first, second) as url, AsyncClient(url, retry=FAST).websocket() as session:
        stream = await session.stream_completion("p", model="m")
        assert [text async for text in stream.text()] == ["whole"]
    assert asked[0] == asked[1]


async def test_a_session_without_streams_connects_again_when_one_is_opened_however_often_its_sockets_are_closed() -> None:
    async def ends(socket: ServerConnection) -> None:
        closing.append(4408)
        await socket.close(4408, "this socket was idle for too long")

    async def answers_one(socket: ServerConnection) -> None:
        asked = await receive(socket)
        await send_done(socket, asked["stream_id"], 0)
        await ends(socket)

    closing: list[int] = []
    sockets = [ends, *[answers_one] * 4]
    async with server(*sockets) as url, AsyncClient(url, retry=FAST).websocket() as session:
        for number in range(1, 5):
            assert len(closing) <= number, "a socket was opened for nothing"
            stream = await session.stream_completion("p", model="m")
            assert [text async for text in stream.text()] == []
            assert stream.status == "completed"


async def test_leaving_a_stream_early_cancels_it_and_the_socket_lives_on() -> None:
    async def script(socket: ServerConnection) -> None:
        first = await receive(socket)
        await send_chunks(socket, first["stream_id"], "a")
        assert await receive(socket) == {"type": "response.cancel", "stream_id": first["stream_id"]}
        await send_done(socket, first["stream_id"], 1, "cancelled")
        second = await receive(socket)
        await send_chunks(socket, second["stream_id"], "z")
        await send_done(socket, second["stream_id"], 1)
        await socket.wait_closed()

    async with server(script) as url, AsyncClient(url).websocket() as session:
        async with await session.stream_completion("p", model="m") as stream:
            assert (await anext(stream)).text == "a"
        async with await session.stream_completion("p", model="m") as stream:
            assert [text async for text in stream.text()] == ["z"]


async def test_a_cancelled_stream_keeps_what_was_generated() -> None:
    async def script(socket: ServerConnection) -> None:
        asked = await receive(socket)
        await send_chunks(socket, asked["stream_id"], "a")
        await receive(socket)
        await send_chunks(socket, asked["stream_id"], "b", start=1)
        await send_done(socket, asked["stream_id"], 2, "cancelled")
        await socket.wait_closed()

    async with server(script) as url, AsyncClient(url).websocket() as session:
        async with await session.stream_completion("p", model="m") as stream:
            assert (await anext(stream)).text == "a"
            stream.cancel()
            assert [text async for text in stream.text()] == ["b"]
    assert stream.status == "cancelled"


async def test_a_refusal_and_a_failure_concern_only_their_stream() -> None:
    async def script(socket: ServerConnection) -> None:
        refused, failed = await receive(socket), await receive(socket)
        body = {"message": "no", "code": "invalid_value"}
        await socket.send(json.dumps({"type": "error", "stream_id": refused["stream_id"], "status": 400, "error": body}))
        await send_chunks(socket, failed["stream_id"], "a")
        await socket.send(json.dumps({"type": "error", "stream_id": failed["stream_id"], "status": 500, "error": body}))
        await socket.wait_closed()

    async with server(script) as url, AsyncClient(url).websocket() as session:
        refused = await session.stream_completion("p", model="m")
        failed = await session.stream_completion("p", model="m")
        with pytest.raises(BadRequest):
            await anext(refused)
        assert (await anext(failed)).text == "a"
        with pytest.raises(StreamFailed):
            await anext(failed)


async def test_a_close_code_that_forbids_a_retry_ends_every_stream() -> None:
    async def script(socket: ServerConnection) -> None:
        await receive(socket)
        await socket.close(4401, "key withdrawn")

    async with server(script) as url, AsyncClient(url).websocket() as session:
        stream = await session.stream_completion("p", model="m")
        with pytest.raises(AuthenticationFailed, match="key withdrawn"):
            await anext(stream)
        with pytest.raises(AuthenticationFailed):
            await session.stream_completion("p", model="m")


async def test_sockets_that_keep_dropping_are_given_up() -> None:
    async def script(socket: ServerConnection) -> None:
        await receive(socket)
        drop(socket)

    async with server(*[script] * 5) as url, AsyncClient(url, retry=FAST).websocket() as session:
        stream = await session.stream_completion("p", model="m")
        with pytest.raises(StreamInterrupted, match="keeps dropping"):
            await anext(stream)


async def test_a_refused_upgrade_is_the_refusals_own_error() -> None:
    body = json.dumps({"error": {"message": "wrong key", "code": "invalid_api_key"}}).encode()
    refusal = Response(401, "Unauthorized", headers=Headers({"Content-Type": "application/json"}), body=body)
    async with server(refuse=refusal) as url:
        with pytest.raises(AuthenticationFailed, match="wrong key"):
            async with AsyncClient(url).websocket():
                raise AssertionError("the session must not open")


async def test_nobody_listening_is_a_failed_connection() -> None:
    async with server() as url:
        gone = url
    with pytest.raises(ConnectionFailed):
        async with AsyncClient(gone, retry=FAST).websocket():
            raise AssertionError("the session must not open")


async def test_leaving_the_session_cancels_its_streams_and_ends_their_readers() -> None:
    async def script(socket: ServerConnection) -> None:
        heard.append((await receive(socket))["type"])
        heard.append((await receive(socket))["type"])
        await socket.wait_closed()

    heard: list[str] = []
    async with server(script) as url, AsyncClient(url).websocket() as session:
        stream = await session.stream_completion("p", model="m")
    with pytest.raises(StreamInterrupted, match="session was closed"):
        await anext(stream)
    assert heard == ["completion.create", "response.cancel"]


async def cli(url: str, *arguments: str) -> asyncio.subprocess.Process:
    command = [sys.executable, "-m", "streamserve_client.cli", *arguments, "-m", "m", "--ws", "--base-url", url]
    return await asyncio.create_subprocess_exec(*command, stdout=PIPE, stderr=PIPE, stdin=DEVNULL)


async def test_the_command_line_streams_over_a_websocket() -> None:
    async def script(socket: ServerConnection) -> None:
        asked = await receive(socket)
        assert asked["messages"] == [{"role": "user", "content": "北京"}]
        await send_chunks(socket, asked["stream_id"], "秋", "天🍂", kind="chat.completion")
        await send_done(socket, asked["stream_id"], 2, kind="chat.completion")
        await socket.wait_closed()

    async with server(script) as url:
        process = await cli(url, "chat", "北京")
        stdout, stderr = await process.communicate()
    assert (process.returncode, stdout.decode(), stderr.decode()) == (0, "秋天🍂\n", "")


async def test_ctrl_c_cancels_the_stream_on_the_server() -> None:
    async def script(socket: ServerConnection) -> None:
        asked = await receive(socket)
        await send_chunks(socket, asked["stream_id"], "a")
        heard.append((await receive(socket))["type"])
        await socket.wait_closed()

    heard: list[str] = []
    async with server(script) as url:
        process = await cli(url, "complete", "p")
        assert process.stdout is not None
        assert await process.stdout.readexactly(1) == b"a"
        process.send_signal(signal.SIGINT)
        _, stderr = await process.communicate()
    assert process.returncode == 130
    assert heard == ["response.cancel"]
    assert b"Traceback" not in stderr

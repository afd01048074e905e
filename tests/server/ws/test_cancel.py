"""Cancelling one stream of a socket: it ends with what it has, the others go on."""

from __future__ import annotations

import anyio
import pytest

from tests.server.ws.session import session
from tests.support.live_server import live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("by", ["stream", "response", "http"])
async def test_a_cancelled_chat_keeps_its_text_and_its_usage_while_others_go_on(by: str) -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("stopped", stream_options={"include_usage": True})
        [stopped] = await engine.sequences(1)
        await client.chat("other")
        [_, other] = await engine.sequences(2)
        engine.say(stopped, "part")
        response_id = (await client.chunk("stopped", "part"))["data"]["id"]
        if by == "stream":
            await client.send({"type": "response.cancel", "stream_id": "stopped"})
        elif by == "response":
            await client.send({"type": "response.cancel", "response_id": response_id})
        else:
            async with request(server.port, "POST", f"/v1/requests/{response_id}/cancel") as cancelled:
                assert cancelled.status == 200
        ending = await client.ending("stopped")
        assert ending["type"] == "chat.completion.done"
        assert (ending["status"], ending["response_id"]) == ("cancelled", response_id)
        assert client.text("stopped") == "part"
        assert client.of("stopped")[-2]["data"]["usage"]["completion_tokens"] == 4
        assert engine.aborted == [stopped]
        engine.say(other, "whole")
        engine.finish(other)
        assert (await client.ending("other"))["status"] == "completed"
        assert client.text("other") == "whole"


async def test_cancelling_before_admission_ends_the_stream_and_frees_what_was_asked_for() -> None:
    engine = ScriptedEngine()
    engine.admit = anyio.Event()
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("s")
        await engine.asked()
        await client.send({"type": "response.cancel", "stream_id": "s"})
        await client.send({"type": "ping"})
        assert (await client.receive())["type"] == "pong"
        engine.admit.set()
        ending = await client.ending("s")
        assert ending["error"]["code"] == "aborted"
        assert await engine.aborts() == await engine.sequences()


async def test_a_cancel_may_come_on_the_heels_of_its_create() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as client:
        create = {"type": "completion.create", "stream_id": "s", "prompt": "x"}
        for message in (create, {"type": "response.cancel", "stream_id": "s"}):
            await client.send(message)
        assert (await client.ending("s"))["error"]["code"] == "aborted"


async def test_a_cancel_may_come_on_the_heels_of_a_resume() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with session(server.port) as client:
            await client.chat("s", resumable=True)
            [sequence] = await engine.sequences()
            engine.say(sequence, "part")
            last = await client.chunk("s", "part")
        async with session(server.port) as client:
            for message in (
                {
                    "type": "response.resume",
                    "stream_id": "s",
                    "response_id": last["data"]["id"],
                    "starting_after": last["sequence_number"],
                },
                {"type": "response.cancel", "stream_id": "s"},
            ):
                await client.send(message)
            assert (await client.ending("s"))["status"] == "cancelled"
        assert engine.aborted == [sequence]


async def test_cancelling_what_does_not_run_is_told_without_ending_any_stream() -> None:
    async with live_server(ScriptedEngine()) as server, session(server.port) as client:
        for target in ({"stream_id": "none"}, {"response_id": "none"}):
            await client.send({"type": "response.cancel", **target})
            answer = await client.receive()
            assert (answer["status"], answer["error"]["code"]) == (404, "not_found")
            assert "stream_id" not in answer


async def test_a_cancel_leaves_creates_that_wait_behind_it() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("s", "first")
        await client.chat("s", "second")
        [first] = await engine.sequences(1)
        await client.send({"type": "response.cancel", "stream_id": "s"})
        assert (await client.ending("s"))["status"] == "cancelled"
        [_, second] = await engine.sequences(2)
        engine.say(second, "two")
        engine.finish(second)
        assert (await client.ending("s"))["status"] == "completed"
        assert engine.aborted == [first]

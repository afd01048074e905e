"""Streams that outlive their sockets, and those that don't."""

from __future__ import annotations

import anyio
import pytest

from tests.server.ws.session import numbers, session, text_of
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio


async def test_a_dropped_socket_ends_its_streams_within_a_step() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with session(server.port) as client:
            await client.chat("s")
            [sequence] = await engine.sequences()
            engine.say(sequence, "a")
            await client.chunk("s", "a")
            await client.drop()
            assert await engine.aborts() == [sequence]
        await server.service.delivery.active_requests.wait_idle()
        metrics = server.service.metrics
        assert metrics.disconnects.totals(metrics.memory)["streaming"] == 1


async def test_a_resumed_stream_loses_no_token_and_repeats_none() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with session(server.port) as client:
            await client.chat("s", resumable=True)
            [sequence] = await engine.sequences()
            engine.say(sequence, "before ")
            await client.chunk("s", "before ")
            seen = client.of("s")
            await client.drop()
        await server.service.sockets.wait_idle()
        engine.say(sequence, "between ")
        async with session(server.port) as client:
            response_id = seen[0]["data"]["id"]
            await client.send(
                {
                    "type": "response.resume",
                    "response_id": response_id,
                    "starting_after": seen[-1]["sequence_number"],
                    "stream_id": "again",
                }
            )
            await client.chunk("again", "between ")
            engine.say(sequence, "after")
            engine.finish(sequence)
            ending = await client.ending("again")
            events = [*seen, *client.of("again")]
        assert ending["type"] == "chat.completion.done"
        assert ending["status"] == "completed"
        assert numbers(events) == list(range(len(events)))
        assert text_of(events) == "before between after"
        assert engine.aborted == []


async def test_a_stream_that_ended_meanwhile_can_still_be_read_from_any_event_on() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with session(server.port) as client:
            await client.chat("s", resumable=True)
            [sequence] = await engine.sequences()
            engine.say(sequence, "hello")
            engine.finish(sequence)
            await client.ending("s")
            whole = client.of("s")
        async with session(server.port) as client:
            for after in (-1, 2, len(whole) - 2):
                response_id = whole[0]["data"]["id"]
                await client.send(
                    {
                        "type": "response.resume",
                        "response_id": response_id,
                        "starting_after": after,
                        "stream_id": f"from {after}",
                    }
                )
                await client.ending(f"from {after}")
                replayed = [{**event, "stream_id": "s"} for event in client.of(f"from {after}")]
                assert replayed == whole[after + 1 :]


async def test_nobody_coming_back_ends_a_resumable_stream_after_a_while() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, resume_s=0.05) as server:
        async with session(server.port) as client:
            await client.chat("s", resumable=True)
            [sequence] = await engine.sequences()
        assert await engine.aborts() == [sequence]


async def test_coming_back_in_time_keeps_it_going() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, resume_s=0.2) as server:
        async with session(server.port) as client:
            await client.chat("s", resumable=True)
            [sequence] = await engine.sequences()
            engine.say(sequence, "a")
            response_id = (await client.chunk("s", "a"))["data"]["id"]
        async with session(server.port) as client:
            await client.send({"type": "response.resume", "response_id": response_id, "starting_after": -1, "stream_id": "s"})
            await client.chunk("s", "a")
            await anyio.sleep(0.3)
            engine.finish(sequence)
            assert (await client.ending("s"))["status"] == "completed"


async def test_a_client_that_named_its_request_can_come_back_without_having_seen_an_event() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with session(server.port) as client:
            await client.chat("s", resumable=True, request_id="mine")
            [sequence] = await engine.sequences()
            await client.drop()
        await server.service.sockets.wait_idle()
        engine.say(sequence, "hello")
        engine.finish(sequence)
        async with session(server.port) as client:
            await client.send({"type": "response.resume", "response_id": "mine", "stream_id": "again"})
            assert (await client.ending("again"))["status"] == "completed"
            assert client.text("again") == "hello"


async def test_events_that_are_not_kept_are_a_resume_gap() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("s", resumable=True)
        [sequence] = await engine.sequences()
        engine.say(sequence, "a")
        response_id = (await client.chunk("s", "a"))["data"]["id"]
        for name, asked in (("unknown", "no-such"), ("ahead", response_id)):
            await client.send({"type": "response.resume", "response_id": asked, "starting_after": 99, "stream_id": name})
            ending = await client.ending(name)
            assert (ending["status"], ending["error"]["code"]) == (410, "resume_gap")
        engine.finish(sequence)


async def test_two_sockets_may_read_one_stream() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as first, session(server.port) as second:
        await first.chat("s", resumable=True)
        [sequence] = await engine.sequences()
        engine.say(sequence, "a")
        response_id = (await first.chunk("s", "a"))["data"]["id"]
        await second.send({"type": "response.resume", "response_id": response_id, "stream_id": "s"})
        await second.chunk("s", "a")
        engine.say(sequence, "b")
        engine.finish(sequence)
        await first.ending("s")
        await second.ending("s")
        assert first.of("s") == second.of("s")

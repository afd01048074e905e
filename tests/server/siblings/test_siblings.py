"""Two API workers of one server: whatever one of them keeps, a client that meets the other gets."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import httpx
import pytest

from streamserve.server.http.access.owned_id import OwnedId
from streamserve_client import SSEDecoder
from tests.server.apis.responses.client import openai_client
from tests.server.ws.session import numbers, session
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply
from tests.support.two_workers import two_workers

pytestmark = pytest.mark.anyio


async def test_a_response_is_read_listed_cancelled_and_deleted_through_any_worker(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with two_workers(engine, tmp_path) as (one, other), openai_client(one.base_url) as there:
        async with openai_client(other.base_url) as here:
            made = await there.responses.create(model="scripted", input="hi", background=True)
            [sequence] = await engine.sequences()
            engine.say(sequence, "hel")
            assert (await here.responses.retrieve(made.id)).status == "in_progress"
            assert [item.type for item in (await here.responses.input_items.list(made.id)).data] == ["message"]
            cancelled = await here.responses.cancel(made.id)
            assert (cancelled.status, cancelled.output_text) == ("cancelled", "hel")
            await here.responses.delete(made.id)
            for client in (here, there):
                with pytest.raises(Exception, match="is kept"):
                    await client.responses.retrieve(made.id)


async def test_a_response_is_streamed_again_through_another_worker(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with two_workers(engine, tmp_path) as (one, other), openai_client(one.base_url) as there:
        async with openai_client(other.base_url) as here:
            made = await there.responses.create(model="scripted", input="hi", background=True)
            [sequence] = await engine.sequences()
            engine.say(sequence, "hello")
            events = await here.responses.retrieve(made.id, stream=True, starting_after=1)
            first = await anext(events)
            assert first.sequence_number == 2
            engine.finish(sequence)
            rest = [first, *[event async for event in events]]
            assert "".join(event.delta for event in rest if event.type == "response.output_text.delta") == "hello"
            assert rest[-1].type == "response.completed"


async def test_a_client_that_leaves_a_response_sent_on_leaves_nothing(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with two_workers(engine, tmp_path) as (one, other), openai_client(one.base_url) as there:
        made = await there.responses.create(model="scripted", input="hi", background=True)
        [sequence] = await engine.sequences()
        async with httpx.AsyncClient() as here:
            async with here.stream("GET", f"{other.base_url}/v1/responses/{made.id}?stream=true") as answer:
                assert answer.headers["content-type"].startswith("text/event-stream")
            log = one.service.stored.get(OwnedId("", made.id)).logged.log  # type: ignore[union-attr]
            with anyio.fail_after(5):
                while log.is_read:
                    await anyio.lowlevel.checkpoint()
        engine.finish(sequence)


@pytest.mark.parametrize("over", ["http", "socket"])
async def test_a_conversation_goes_on_where_it_is_kept(tmp_path: Path, over: str) -> None:
    engine = ScriptedEngine(reply=text_reply("hello"))
    async with two_workers(engine, tmp_path) as (one, other), openai_client(one.base_url) as there:
        made = await there.responses.create(model="scripted", input="first")
        if over == "http":
            async with openai_client(other.base_url) as here:
                answer = await here.responses.create(model="scripted", input="second", previous_response_id=made.id)
                assert answer.output_text == "hello"
        else:
            async with session(other.port) as client:
                await client.send({"type": "response.create", "input": "second", "previous_response_id": made.id})
                assert (await client.ending(None))["type"] == "response.completed"
                assert numbers(client.events) == list(range(len(client.events)))
        prompts = [bytes(spec.prompt_token_ids).decode() for spec in engine.specs.values()]
        assert "first" in prompts[1]
        assert "second" in prompts[1]
        assert len(one.service.stored) == 2


async def test_items_are_found_where_their_response_is_kept_and_nowhere_when_no_worker_has_all(tmp_path: Path) -> None:
    engine = ScriptedEngine(reply=text_reply("hello"))
    async with two_workers(engine, tmp_path) as (one, other), openai_client(one.base_url) as there:
        async with openai_client(other.base_url) as here:
            kept_there = await there.responses.create(model="scripted", input="first")
            kept_here = await here.responses.create(model="scripted", input="second")
            [reference, local] = [{"type": "item_reference", "id": each.output[0].id} for each in (kept_there, kept_here)]
            again: Any = {"role": "user", "content": "third"}
            answer = await here.responses.create(model="scripted", input=[reference, again])  # type: ignore[list-item]
            assert one.service.stored.get(OwnedId("", answer.id)) is not None
            assert bytes(list(engine.specs.values())[-1].prompt_token_ids) == b"<assistant>hello\n<user>third\n<assistant>"
            with pytest.raises(Exception, match="no API worker keeps all"):
                await here.responses.create(model="scripted", input=[reference, local, again])  # type: ignore[list-item]


async def test_a_dropped_stream_is_resumed_through_another_worker(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with two_workers(engine, tmp_path, api_keys=["key"]) as (one, other):
        key: dict[str, Any] = {"additional_headers": {"Authorization": "Bearer key"}}
        async with session(one.port, **key) as client:
            await client.chat("s", resumable=True)
            [sequence] = await engine.sequences()
            engine.say(sequence, "before ")
            await client.chunk("s", "before ")
            seen = client.of("s")
            await client.drop()
        await one.service.sockets.wait_idle()
        async with session(other.port, **key) as client:
            await client.send(
                {
                    "type": "response.resume",
                    "response_id": seen[0]["data"]["id"],
                    "starting_after": seen[-1]["sequence_number"],
                    "stream_id": "again",
                }
            )
            engine.say(sequence, "after")
            await client.chunk("again", "after")
            await client.send({"type": "response.cancel", "stream_id": "again"})
            ending = await client.ending("again")
            assert (ending["type"], ending["status"]) == ("chat.completion.done", "cancelled")
            assert numbers([*seen, *client.of("again")]) == list(range(len(seen) + len(client.of("again"))))


@pytest.mark.parametrize("method", ["POST", "GET"])
async def test_a_dropped_sse_stream_goes_on_through_another_worker(tmp_path: Path, method: str) -> None:
    engine = ScriptedEngine()
    body = {"prompt": "say", "stream": True}
    async with two_workers(engine, tmp_path) as (one, other):
        async with request(one.port, "POST", "/v1/completions", body, headers={"X-Stream-Resume": "1"}) as response:
            [sequence] = await engine.sequences()
            engine.say(sequence, "a")
            [seen] = SSEDecoder().feed(await response.chunk() or b"")
            await response.leave()
        path = "/v1/completions" if method == "POST" else f"/v1/streams/{seen.id.rpartition(':')[0]}"
        async with request(other.port, method, path, headers={"Last-Event-ID": seen.id}) as response:
            assert response.headers["x-stream-id"] == seen.id.rpartition(":")[0]
            engine.say(sequence, "b")
            engine.finish(sequence)
            rest = SSEDecoder().feed(await response.body())
        assert [event.id.rpartition(":")[2] for event in rest] == ["1", "2", "3"]
        assert [json.loads(event.data)["choices"][0]["text"] for event in rest[:-1]] == ["b", ""]
        assert rest[-1].data == "[DONE]"


async def test_a_socket_that_drops_lets_go_of_what_another_worker_makes_for_it(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    async with two_workers(engine, tmp_path, resume_s=0.2) as (one, other):
        async with session(one.port) as client:
            await client.chat("s", resumable=True, request_id="mine")
            [sequence] = await engine.sequences()
            await client.drop()
        async with session(other.port) as client:
            await client.send({"type": "response.resume", "response_id": "mine", "stream_id": "again"})
            engine.say(sequence, "a")
            await client.chunk("again", "a")
            await client.drop()
        assert await engine.aborts() == [sequence]


async def test_what_no_worker_keeps_is_a_gap_for_all(tmp_path: Path) -> None:
    async with two_workers(ScriptedEngine(), tmp_path) as (one, _), session(one.port) as client:
        await client.send({"type": "response.resume", "response_id": "nobody's", "stream_id": "s"})
        assert (await client.ending("s"))["error"]["code"] == "resume_gap"


async def test_an_id_of_any_length_costs_its_own_request_alone(tmp_path: Path) -> None:
    """One of more than 64 KiB ended the whole server: the question about it was a line that no worker could read."""
    long = "x" * (1 << 17)
    async with two_workers(ScriptedEngine(), tmp_path) as (one, other):
        async with httpx.AsyncClient(base_url=one.base_url) as client:
            continued = await client.post("/v1/responses", json={"input": "hi", "previous_response_id": long})
            assert (continued.status_code, continued.json()["error"]["code"]) == (400, "previous_response_not_found")
            assert len(continued.content) < 1024
            for method, path in (("GET", long[:60_000]), ("POST", f"{long[:60_000]}/cancel")):
                assert (await client.request(method, f"/v1/responses/{path}")).status_code == 404
        async with session(one.port) as socket:
            await socket.send({"type": "response.cancel", "response_id": long})
            assert (await socket.receive())["error"]["code"] == "not_found"
            await socket.send({"type": "response.resume", "response_id": long, "stream_id": "s"})
            assert (await socket.ending("s"))["error"]["code"] == "resume_gap"
        for worker in (one, other):
            assert await worker.service.find_sibling(OwnedId("", "nobody's")) is None


@pytest.mark.parametrize("by", ["http", "message", "resumed stream"])
async def test_a_request_is_told_to_answer_through_any_worker(tmp_path: Path, by: str) -> None:
    engine = ScriptedEngine()
    async with two_workers(engine, tmp_path) as (one, other), session(one.port) as there, session(other.port) as here:
        await there.chat("s", resumable=True)
        [sequence] = await engine.sequences()
        engine.say(sequence, "a")
        response_id = (await there.chunk("s", "a"))["data"]["id"]
        if by == "http":
            async with httpx.AsyncClient() as client:
                answer = await client.post(f"{other.base_url}/v1/requests/{response_id}/answer")
            assert answer.status_code == 200
        elif by == "message":
            await here.send({"type": "response.answer", "response_id": response_id})
        else:
            await here.send({"type": "response.resume", "stream_id": "again", "response_id": response_id, "starting_after": -1})
            await here.chunk("again", "a")
            await here.send({"type": "response.answer", "stream_id": "again"})
        assert await engine.answers() == [sequence]
        engine.finish(sequence)
        await there.ending("s")

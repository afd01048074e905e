"""What a key makes is its own: to every other key an id of it is one that never was, whichever API worker is asked."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.server.ws.session import session
from tests.support.live_server import LiveServer, live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply
from tests.support.two_workers import two_workers

pytestmark = pytest.mark.anyio

ALICE, BOB = ({"Authorization": f"Bearer {key}"} for key in ("alice", "bob"))
HI = [{"role": "user", "content": "hi"}]


@pytest.fixture
async def engine() -> ScriptedEngine:
    return ScriptedEngine()


@pytest.fixture
async def workers(engine: ScriptedEngine, tmp_path: Path) -> AsyncIterator[tuple[LiveServer, LiveServer]]:
    """Two, of which the first makes for Alice: resp_mine, made in the background, and the resumable stream chatcmpl-mine."""
    async with two_workers(engine, tmp_path, api_keys=["alice", "bob"]) as both:
        yield both


async def make_mine(one: LiveServer, engine: ScriptedEngine) -> list[str]:
    """Begin Alice's response and stream; returns their sequences."""
    body = {"input": "hi", "background": True, "request_id": "mine"}
    async with httpx.AsyncClient(base_url=one.base_url, headers=ALICE) as client:
        assert (await client.post("/v1/responses", json=body)).status_code == 200
    async with session(one.port, additional_headers=ALICE) as socket:
        await socket.chat("s", resumable=True, request_id="mine")
        sequences = await engine.sequences(2)
        engine.say(sequences[1], "a")
        await socket.chunk("s", "a")
        await socket.drop()
    await one.service.sockets.wait_idle()
    return sequences


def requests_about(id: str) -> list[tuple[str, str, Any]]:
    """Everything that a client can ask about an id, or say with it."""
    item = [{"type": "item_reference", "id": f"msg_{id}_0"}, *HI]
    return [
        ("GET", f"/v1/responses/resp_{id}", None),
        ("GET", f"/v1/responses/resp_{id}?stream=true", None),
        ("GET", f"/v1/responses/resp_{id}/input_items", None),
        ("POST", f"/v1/responses/resp_{id}/cancel", None),
        ("POST", f"/v1/responses/chatcmpl-{id}/cancel", None),
        ("DELETE", f"/v1/responses/resp_{id}", None),
        ("POST", f"/v1/requests/{id}/cancel", None),
        ("POST", f"/v1/requests/chatcmpl-{id}/cancel", None),
        ("POST", f"/v1/requests/chatcmpl-{id}/answer", None),
        ("POST", "/v1/responses", {"input": "more", "previous_response_id": f"resp_{id}"}),
        ("POST", "/v1/responses", {"input": item}),
        ("POST", "/v1/responses/input_tokens", {"input": "more", "previous_response_id": f"resp_{id}"}),
        ("POST", "/v1/responses/compact", {"model": "scripted", "previous_response_id": f"resp_{id}"}),
    ]


async def test_anothers_id_is_answered_as_one_that_never_was(
    engine: ScriptedEngine, workers: tuple[LiveServer, LiveServer]
) -> None:
    sequences = await make_mine(workers[0], engine)
    for worker in workers:
        async with httpx.AsyncClient(base_url=worker.base_url, headers=BOB) as client:
            for (method, path, body), (_, other_path, other_body) in zip(
                requests_about("mine"), requests_about("zork"), strict=True
            ):
                mine = await client.request(method, path, json=body)
                unknown = await client.request(method, other_path, json=other_body)
                assert mine.status_code == unknown.status_code in (400, 404), (method, path)
                assert mine.text.replace("mine", "zork") == unknown.text
    assert [*engine.specs] == sequences
    assert engine.aborted == engine.answering == []


async def test_anothers_stream_can_be_neither_resumed_nor_cancelled_over_a_socket(
    engine: ScriptedEngine, workers: tuple[LiveServer, LiveServer]
) -> None:
    await make_mine(workers[0], engine)
    for worker in workers:
        async with session(worker.port, additional_headers=BOB) as socket:
            for id in ("resp_mine", "chatcmpl-mine", "mine", "resp_zork"):
                await socket.send({"type": "response.resume", "response_id": id, "stream_id": "again"})
                assert (await socket.ending("again"))["error"]["code"] == "resume_gap"
                for command in ("response.cancel", "response.answer"):
                    await socket.send({"type": command, "response_id": id})
                    assert (await socket.receive())["error"]["code"] == "not_found"
    assert engine.aborted == engine.answering == []


async def test_anothers_stream_can_not_be_continued_over_sse(
    engine: ScriptedEngine, workers: tuple[LiveServer, LiveServer]
) -> None:
    await make_mine(workers[0], engine)
    asked: list[tuple[str, str, dict[str, str]]] = [
        ("GET", "/v1/streams/{}", {}),
        ("GET", "/v1/streams/chatcmpl-{}", {"Last-Event-ID": "chatcmpl-{}:0"}),
        ("POST", "/v1/chat/completions", {"Last-Event-ID": "chatcmpl-{}:0"}),
    ]
    for worker in workers:
        async with httpx.AsyncClient(base_url=worker.base_url) as client:
            for method, path, header in asked:
                named = {name: value.format("mine") for name, value in header.items()}
                theirs = await client.request(method, path.format("mine"), headers=BOB | named)
                assert (theirs.status_code, theirs.json()["error"]["code"]) == (410, "resume_gap")
                assert "mine" not in theirs.text
                async with client.stream(method, path.format("mine"), headers=ALICE | named) as own:
                    assert own.status_code == 200
    assert engine.aborted == []


async def test_owners_find_what_is_theirs_through_either_worker(
    engine: ScriptedEngine, workers: tuple[LiveServer, LiveServer]
) -> None:
    sequences = await make_mine(workers[0], engine)
    for worker in workers:
        async with httpx.AsyncClient(base_url=worker.base_url, headers=ALICE) as client:
            assert (await client.get("/v1/responses/resp_mine")).json()["status"] == "in_progress"
    async with session(workers[1].port, additional_headers=ALICE) as socket:
        await socket.send({"type": "response.resume", "response_id": "mine", "stream_id": "again"})
        await socket.chunk("again", "a")
        await socket.send({"type": "response.cancel", "stream_id": "again"})
        await socket.ending("again")
    async with httpx.AsyncClient(base_url=workers[1].base_url, headers=ALICE) as client:
        assert (await client.post("/v1/requests/mine/cancel")).status_code == 200
    assert sorted(engine.aborted) == sorted(sequences)


async def test_two_keys_may_call_their_requests_alike(engine: ScriptedEngine) -> None:
    """Else the refusal of an id would tell that somebody else uses it, and whoever guesses ids could keep others out."""
    async with live_server(engine, api_keys=["alice", "bob"]) as server:
        await make_mine(server, engine)
        body = {"input": "hi", "background": True, "request_id": "mine"}
        async with httpx.AsyncClient(base_url=server.base_url, headers=BOB) as client:
            made = await client.post("/v1/responses", json=body)
            assert (made.status_code, made.json()["id"]) == (200, "resp_mine")
            assert (await client.delete("/v1/responses/resp_mine")).status_code == 200
        assert len(engine.specs) == 3
        assert engine.aborted == [[*engine.specs][2]]


@pytest.mark.parametrize("is_per_key", [True, False])
async def test_prefixes_are_shared_among_the_requests_of_a_key_alone_where_that_is_wanted(is_per_key: bool) -> None:
    engine = ScriptedEngine(reply=text_reply("ok"))
    async with live_server(engine, api_keys=["alice", "bob"], prefix_cache_per_key=is_per_key) as server:
        for headers, salt in ((ALICE, {}), (ALICE, {}), (BOB, {}), (BOB, {"cache_salt": "key-1/"})):
            async with httpx.AsyncClient(base_url=server.base_url, headers=headers) as client:
                await client.post("/v1/completions", json={"prompt": "hi", **salt})
                await client.post("/v1/chat/completions", json={"messages": HI, **salt})
    assert [spec.tenant.name for spec in engine.specs.values()] == ["key-1"] * 4 + ["key-2"] * 4
    salts = [spec.cache_salt for spec in engine.specs.values()]
    assert salts[0] == salts[1] == salts[2] == salts[3]
    assert (salts[4] == salts[0]) is not is_per_key
    assert salts[6] not in salts[:6]

"""Messages that no client would send: each is answered, none is a fault of the server, the socket stays open."""

from __future__ import annotations

import random
from typing import Any

import pytest

from tests.server.ws.session import session
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

TYPES = ["chat.completion.create", "completion.create", "response.create", "response.cancel", "response.resume", "other"]
FIELDS = [
    *("stream_id", "response_id", "starting_after", "messages", "prompt", "input", "model", "n", "stream", "resumable"),
    *("temperature", "max_tokens", "instructions", "previous_response_id", "text", "tools", "metadata", "background", "store"),
    *("include", "logprobs", "top_logprobs", "stop", "seed", "request_id", "stream_options", "response_format", "reasoning"),
]


def value(rng: random.Random, depth: int = 0) -> Any:
    kinds: list[Any] = [None, True, -1, 0, 2**70, 1.5, "", "x", "\ud83d", "message", [], {}]
    if depth < 3 and rng.random() < 0.4:
        size = rng.randrange(3)
        if rng.random() < 0.5:
            return [value(rng, depth + 1) for _ in range(size)]
        names = ["role", "content", "type", "text", "format", "function", "name", *FIELDS]
        return {rng.choice(names): value(rng, depth + 1) for _ in range(size)}
    return rng.choice(kinds)


def message(rng: random.Random) -> dict[str, Any]:
    fields = {name: value(rng) for name in rng.sample(FIELDS, rng.randrange(6))}
    if rng.random() < 0.5:
        fields |= {"stream_id": "s", "messages": [{"role": "user", "content": "x"}], "prompt": "x", "input": "x"}
        fields |= {rng.choice(FIELDS): value(rng)}
    return {"type": rng.choice(TYPES), **fields}


@pytest.mark.parametrize("seed", range(2))
async def test_any_object_is_answered_and_the_socket_stays_open(seed: int) -> None:
    rng = random.Random(seed)
    async with live_server(ScriptedEngine(reply=text_reply("fine"))) as server, session(server.port) as client:
        for number in range(100):
            await client.send(message(rng))
            await client.send({"type": "ping", "id": number})
            while (event := await client.receive()) != {"type": "pong", "id": number}:
                assert event.get("status") != 500, event
        await server.service.delivery.active_requests.wait_idle()
        await client.chat("after all")
        assert (await client.ending("after all"))["status"] == "completed"
    assert not any(event.get("status") == 500 for event in client.events)


async def test_half_a_character_is_read_as_a_browser_would_send_it() -> None:
    engine = ScriptedEngine(reply=text_reply("fine"))
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("s", "cut \ud83d")
        assert (await client.ending("s"))["status"] == "completed"
        await client.connection.send('{"type": "ping", "id": NaN}')
        assert await client.closed() == 4400
    [spec] = engine.specs.values()
    assert "cut \ufffd" in bytes(spec.prompt_token_ids).decode()


async def test_what_is_nested_too_deeply_is_refused_and_the_socket_stays_open() -> None:
    deep = "[" * 300 + "]" * 300
    async with live_server(ScriptedEngine(reply=text_reply("fine"))) as server, session(server.port) as client:
        for message in (
            f'{{"type": "ping", "id": {deep}}}',
            f'{{"type": "completion.create", "stream_id": "s", "prompt": "x", "more": {deep}}}',
        ):
            await client.connection.send(message)
            event = await client.receive()
            assert (event["type"], event["status"]) == ("error", 400)
            assert "nested too deeply" in event["error"]["message"]
        await client.send({"type": "ping", "id": 1})
        assert await client.receive() == {"type": "pong", "id": 1}

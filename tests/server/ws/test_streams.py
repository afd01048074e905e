"""Many streams over one socket: apart, in order, whole, and the same as over SSE."""

from __future__ import annotations

from typing import Any

import pytest

from streamserve.types import SequenceSpec, TokenDelta
from tests.server.ws.session import numbers, session, text_of
from tests.support.live_server import live_server
from tests.support.raw_http import events, request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio


def echo(spec: SequenceSpec) -> list[TokenDelta]:
    """Repeats the last character of the user's message a hundred times."""
    prompt = bytes(spec.prompt_token_ids).decode()
    return list(text_reply(prompt.split("<user>")[1][0] * 100)(spec))


async def test_twenty_streams_share_a_socket_and_each_gets_its_own_whole_answer() -> None:
    async with live_server(ScriptedEngine(reply=echo)) as server, session(server.port) as client:
        names = [chr(ord("a") + index) for index in range(20)]
        for name in names:
            await client.chat(name, name)
        left = set(names)
        while left:
            event = await client.receive()
            if event["type"] == "chat.completion.done":
                assert event["status"] == "completed"
                left.remove(event["stream_id"])
        for name in names:
            own = client.of(name)
            assert client.text(name) == name * 100
            assert numbers(own) == list(range(len(own)))
            assert own[-1]["response_id"] == own[0]["data"]["id"]
        assert client.of(None) == []


async def test_streams_take_turns_so_that_none_waits_for_another_to_end() -> None:
    async with live_server(ScriptedEngine(reply=echo)) as server, session(server.port) as client:
        for name in "abcd":
            await client.chat(name, name)
        for name in "abcd":
            if not any(event["type"] == "chat.completion.done" for event in client.of(name)):
                await client.ending(name)
        order = [event["stream_id"] for event in client.events]
        first_ending = next(index for index, event in enumerate(client.events) if event["type"] == "chat.completion.done")
        assert set(order[:first_ending]) == set("abcd")


async def test_creates_with_the_same_stream_id_run_one_after_another() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("same", "first")
        await client.chat("same", "second")
        await client.chat("other", "third")
        first, third = await engine.sequences(2)
        assert b"third" in bytes(engine.specs[third].prompt_token_ids)
        engine.say(first, "one")
        engine.finish(first)
        await client.ending("same")
        [_, _, second] = await engine.sequences(3)
        engine.say(second, "two")
        engine.finish(second)
        await client.ending("same")
        endings = [index for index, event in enumerate(client.of("same")) if event["type"] == "chat.completion.done"]
        assert text_of(client.of("same")[: endings[0]]) == "one"
        assert text_of(client.of("same")[endings[0] :]) == "two"
        assert numbers(client.of("same")[endings[0] + 1 :])[0] == 0
        engine.finish(third)


def without_ids(chunk: Any) -> Any:
    return {name: value for name, value in chunk.items() if name not in ("id", "created")}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"stream_options": {"include_usage": True}},
        {"stream_options": {"include_usage": True, "continuous_usage_stats": True}},
        {"logprobs": True, "top_logprobs": 2, "return_token_ids": True},
        {"n": 3, "temperature": 1.0},
        {"stop": ["lo, w"]},
    ],
    ids=str,
)
async def test_a_socket_carries_the_very_chunks_that_sse_does(options: dict[str, Any]) -> None:
    engine = ScriptedEngine(reply=text_reply("hello, wörld 你好 🙂"))
    body = {"messages": [{"role": "user", "content": "hi"}], **options}
    async with live_server(engine) as server:
        async with request(server.port, "POST", "/v1/chat/completions", {**body, "stream": True}) as response:
            *over_sse, done = events(await response.body())
        async with session(server.port) as client:
            await client.chat("s", **options)
            await client.ending("s")
    over_socket = [event["data"] for event in client.of("s")[:-1]]
    assert done == "[DONE]"
    by_choice = options.get("n", 1)
    for index in range(by_choice):
        of_sse, of_socket = (
            [without_ids(chunk) for chunk in chunks if not chunk["choices"] or chunk["choices"][0]["index"] == index]
            for chunks in (over_sse, over_socket)
        )
        assert of_socket == of_sse
    assert len({chunk["id"] for chunk in over_socket}) == 1


async def test_completions_stream_too_and_say_so() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("four"))) as server, session(server.port, "/v1/responses") as client:
        await client.send({"type": "completion.create", "stream_id": "c", "prompt": ["one", "two"], "max_tokens": 9})
        ending = await client.ending("c")
        chunks = [event["data"]["choices"][0] for event in client.of("c")[:-1]]
    assert ending["type"] == "completion.done"
    assert {event["type"] for event in client.of("c")[:-1]} == {"completion.chunk"}
    for index in (0, 1):
        assert "".join(chunk["text"] for chunk in chunks if chunk["index"] == index) == "four"


async def test_pings_are_answered_while_streams_run() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("s")
        await engine.sequences()
        await client.send({"type": "ping", "id": "one"})
        assert await client.receive() == {"type": "pong", "id": "one"}
        await client.send({"type": "ping"})
        assert await client.receive() == {"type": "pong"}


async def test_the_gauges_count_sockets_and_streams() -> None:
    engine = ScriptedEngine()

    async def gauges(port: int) -> dict[str, float]:
        async with request(port, "GET", "/metrics") as response:
            lines = (await response.body()).decode().splitlines()
        return {line.split("{")[0]: float(line.split()[-1]) for line in lines if line.startswith("streamserve:ws_")}

    async with live_server(engine) as server:
        async with session(server.port) as client:
            await client.chat("s")
            [sequence] = await engine.sequences()
            assert await gauges(server.port) == {"streamserve:ws_connections": 1.0, "streamserve:ws_streams": 1.0}
            engine.finish(sequence)
            await client.ending("s")
        await server.service.sockets.wait_idle()
        assert await gauges(server.port) == {"streamserve:ws_connections": 0.0, "streamserve:ws_streams": 0.0}


async def test_a_refused_create_is_an_error_of_its_stream_and_the_socket_goes_on() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("fine"))) as server, session(server.port) as client:
        await client.chat("s", temperature=-1)
        refused = await client.receive()
        assert refused["stream_id"] == "s"
        assert refused["status"] == 400
        assert refused["error"]["param"] == "temperature"
        assert set(refused["error"]) == {"message", "type", "param", "code"}
        await client.chat("s")
        await client.ending("s")
        assert client.text("s") == "fine"


@pytest.mark.parametrize(
    ("message", "param"),
    [
        ({"type": "chat.completion.create", "messages": []}, "stream_id"),
        ({"type": "chat.completion.create", "messages": [], "stream_id": 7}, "stream_id"),
        ({"type": "chat.completion.create", "messages": [], "stream_id": "x" * 65}, "stream_id"),
        ({"type": "nothing.known"}, "type"),
        ({"no": "type"}, "type"),
        ({"type": ["ping"]}, "type"),
        ({"type": "response.resume"}, "response_id"),
        ({"type": "response.resume", "response_id": "r", "starting_after": "1"}, "starting_after"),
        ({"type": "response.cancel", "response_id": 3}, "response_id"),
    ],
)
async def test_a_message_that_makes_no_sense_is_answered_and_the_socket_goes_on(message: dict[str, Any], param: str) -> None:
    async with live_server(ScriptedEngine()) as server, session(server.port) as client:
        await client.send(message)
        answer = await client.receive()
        assert (answer["type"], answer["status"], answer["error"]["param"]) == ("error", 400, param)
        assert "stream_id" not in answer
        await client.send({"type": "ping"})
        assert (await client.receive())["type"] == "pong"


async def test_stream_false_is_refused_rather_than_ignored() -> None:
    async with live_server(ScriptedEngine()) as server, session(server.port) as client:
        await client.chat("s", stream=False)
        assert (await client.ending("s"))["error"]["param"] == "stream"

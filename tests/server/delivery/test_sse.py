"""What a stream looks like on the wire, write by write."""

from __future__ import annotations

import anyio
import pytest

from streamserve.engine.stream import StreamLimits
from streamserve.types import TokenDelta
from tests.support.live_server import live_server
from tests.support.raw_http import events, request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

COMPLETION = {"model": "scripted", "prompt": "say", "stream": True}
CHAT = {"model": "scripted", "messages": [{"role": "user", "content": "say"}], "stream": True}


async def test_the_headers_keep_proxies_from_buffering() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("a"))) as server:
        async with request(server.port, "POST", "/v1/completions", COMPLETION, headers={"X-Request-Id": "mine"}) as response:
            assert response.status == 200
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            assert response.headers["cache-control"] == "no-cache, no-transform"
            assert response.headers["x-accel-buffering"] == "no"
            assert response.headers["x-request-id"] == "mine"


async def test_a_chat_is_a_role_then_content_then_one_finish_then_done() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("hé!"))) as server:
        async with request(server.port, "POST", "/v1/chat/completions", CHAT) as response:
            *chunks, done = events(await response.body())
    choices = [chunk["choices"][0] for chunk in chunks]
    assert done == "[DONE]"
    assert [choice["delta"] for choice in choices] == [
        {"role": "assistant", "content": ""},
        {"content": "h"},
        {"content": "é"},
        {"content": "!"},
        {},
    ]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, None, "stop"]
    assert all(choice["logprobs"] is None for choice in choices)
    assert len({(chunk["id"], chunk["created"], chunk["model"], chunk["object"]) for chunk in chunks}) == 1
    assert chunks[0]["object"] == "chat.completion.chunk"


async def test_the_role_comes_in_the_same_write_as_the_first_token() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, request(server.port, "POST", "/v1/chat/completions", CHAT) as response:
        [sequence] = await engine.sequences()
        engine.say(sequence, "h")
        first = events(await response.chunk() or b"")
    assert [chunk["choices"][0]["delta"] for chunk in first] == [{"role": "assistant", "content": ""}, {"content": "h"}]


async def test_every_token_is_a_write_of_its_own_and_the_last_one_carries_the_ending() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, request(server.port, "POST", "/v1/completions", COMPLETION) as response:
        [sequence] = await engine.sequences()
        for letter in "abc":
            engine.say(sequence, letter)
            [chunk] = events(await response.chunk() or b"")
            assert chunk["choices"][0]["text"] == letter
        engine.generate(sequence, TokenDelta([ord("d")], finish_reason="length"))
        last, done = events(await response.chunk() or b"")
        assert (last["choices"][0]["text"], last["choices"][0]["finish_reason"], done) == ("d", "length", "[DONE]")
        assert await response.chunk() is None


async def test_a_token_that_completes_no_character_sends_nothing_and_no_write_splits_one() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, request(server.port, "POST", "/v1/completions", COMPLETION) as response:
        [sequence] = await engine.sequences()
        for byte in "北京".encode():
            engine.generate(sequence, TokenDelta([byte]))
            await anyio.lowlevel.checkpoint()
        engine.finish(sequence)
        chunks = [chunk async for chunk in response.chunks()]
    texts = [event["choices"][0]["text"] for chunk in chunks for event in events(chunk)[:3] if event != "[DONE]"]
    assert "".join(texts) == "北京"
    assert "�" not in "".join(texts)


async def test_usage_comes_last_and_is_null_before() -> None:
    body = {**CHAT, "stream_options": {"include_usage": True}}
    async with live_server(ScriptedEngine(reply=text_reply("hey"))) as server:
        async with request(server.port, "POST", "/v1/chat/completions", body) as response:
            *chunks, last, _ = events(await response.body())
    assert all(chunk["usage"] is None for chunk in chunks)
    assert last["choices"] == []
    prompt = len("<user>say\n<assistant>")
    assert (last["usage"]["prompt_tokens"], last["usage"]["completion_tokens"]) == (prompt, 4)
    assert last["usage"]["total_tokens"] == prompt + 4


async def test_continuous_usage_counts_up_on_every_event() -> None:
    body = {**COMPLETION, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    async with live_server(ScriptedEngine(reply=text_reply("hey"))) as server:
        async with request(server.port, "POST", "/v1/completions", body) as response:
            *chunks, _ = events(await response.body())
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 4, 4]


async def test_choices_are_numbered_by_output_within_prompt() -> None:
    engine = ScriptedEngine()
    body = {**COMPLETION, "prompt": ["a", "b"], "n": 2}
    async with live_server(engine) as server, request(server.port, "POST", "/v1/completions", body) as response:
        sequences = await engine.sequences(4)
        assert [engine.specs[sequence].prompt_token_ids for sequence in sequences] == [[97], [97], [98], [98]]
        for place, sequence in enumerate(sequences):
            engine.say(sequence, str(place))
            engine.finish(sequence)
        *chunks, done = events(await response.body())
    texts = ["", "", "", ""]
    for chunk in chunks:
        texts[chunk["choices"][0]["index"]] += chunk["choices"][0]["text"]
    assert texts == ["0", "1", "2", "3"]
    assert sorted(chunk["choices"][0]["index"] for chunk in chunks if chunk["choices"][0]["finish_reason"]) == [0, 1, 2, 3]
    assert done == "[DONE]"


async def test_what_one_step_brings_for_several_choices_is_one_write() -> None:
    engine = ScriptedEngine()
    body = {**COMPLETION, "n": 3}
    async with live_server(engine) as server, request(server.port, "POST", "/v1/completions", body) as response:
        for sequence in await engine.sequences(3):
            engine.say(sequence, "x")
        assert len(events(await response.chunk() or b"")) == 3


async def test_echo_sends_the_prompt_first_and_text_offsets_run_on() -> None:
    body = {**COMPLETION, "prompt": "ab", "echo": True, "logprobs": 1}
    async with live_server(ScriptedEngine(reply=text_reply("cé"))) as server:
        async with request(server.port, "POST", "/v1/completions", body) as response:
            *chunks, _ = events(await response.body())
    choices = [chunk["choices"][0] for chunk in chunks]
    assert [choice["text"] for choice in choices] == ["abc", "é", ""]
    assert [choice["logprobs"]["text_offset"] for choice in choices] == [[0, 1, 2], [3, 3], [4]]
    assert choices[0]["logprobs"]["tokens"] == ["a", "b", "c"]
    assert choices[0]["logprobs"]["token_logprobs"] == [None, -0.5, -0.25]
    assert choices[0]["logprobs"]["top_logprobs"] == [None, {"b": -0.5}, {"c": -0.25}]


async def test_chat_logprobs_hold_true_bytes_and_alternatives() -> None:
    body = {**CHAT, "logprobs": True, "top_logprobs": 2}
    async with live_server(ScriptedEngine(reply=text_reply("é", reason="length"))) as server:
        async with request(server.port, "POST", "/v1/chat/completions", body) as response:
            content = events(await response.body())[1]["choices"][0]
    assert content["delta"] == {"content": "é"}
    assert [entry["bytes"] for entry in content["logprobs"]["content"]] == [[0xC3], [0xA9]]
    assert [entry["token"] for entry in content["logprobs"]["content"][0]["top_logprobs"]] == ["�", "x"]


async def test_token_ids_ride_on_the_events() -> None:
    body = {**COMPLETION, "return_token_ids": True}
    async with live_server(ScriptedEngine(reply=text_reply("hi"))) as server:
        async with request(server.port, "POST", "/v1/completions", body) as response:
            *chunks, _ = events(await response.body())
    assert chunks[0]["choices"][0]["prompt_token_ids"] == list(b"say")
    assert [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]] == [*b"hi", 256]


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
async def test_silence_is_kept_alive_with_blank_lines_while_queued_and_between_tokens(path: str) -> None:
    engine = ScriptedEngine()
    body = COMPLETION if path == "/v1/completions" else CHAT
    async with live_server(engine, keepalive_s=0.03) as server, request(server.port, "POST", path, body) as response:
        [sequence] = await engine.sequences()
        assert await response.chunk() == b"\n\n"
        assert await response.chunk() == b"\n\n"
        engine.say(sequence, "a")
        while (chunk := await response.chunk()) == b"\n\n":
            continue
        assert events(chunk or b"")
        assert await response.chunk() == b"\n\n"


async def test_a_reader_that_lags_gets_everything_in_order_in_fewer_events() -> None:
    engine = ScriptedEngine(limits=StreamLimits(queue_deltas=4))
    text = "".join(chr(97 + place % 26) for place in range(400))
    async with live_server(engine) as server, request(server.port, "POST", "/v1/completions", COMPLETION) as response:
        [sequence] = await engine.sequences()
        engine.say(sequence, text)
        engine.finish(sequence)
        *chunks, done = events(await response.body())
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == text
    assert len(chunks) < 10
    assert done == "[DONE]"


async def test_a_spent_time_budget_is_a_length_to_clients() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("a", reason="time"))) as server:
        async with request(server.port, "POST", "/v1/completions", COMPLETION) as response:
            assert events(await response.body())[-2]["choices"][0]["finish_reason"] == "length"

"""What a response may continue: the one before it, items of earlier ones, what its socket keeps, a compacted conversation."""

from __future__ import annotations

from typing import Any

import pytest

from tests.server.apis.responses.raw import post
from tests.server.ws.session import Session, session
from tests.support.live_server import live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

UNSTORED: dict[str, Any] = {"type": "response.create", "store": False}


def prompts(engine: ScriptedEngine) -> list[str]:
    return [bytes(spec.prompt_token_ids).decode() for spec in engine.specs.values()]


async def turn(socket: Session, **fields: Any) -> dict[str, Any]:
    """The terminal event of one response over a socket."""
    await socket.send({**UNSTORED, **fields})
    return await socket.ending(None)


async def test_items_of_a_stored_response_may_be_named_instead_of_sent() -> None:
    """The AI SDK sends the items of earlier turns so, without a `previous_response_id`; the API lets the type be left out."""
    engine = ScriptedEngine(reply=text_reply("hello"))
    async with live_server(engine) as server:
        _, first = await post(server, {"input": [{"role": "user", "content": "one"}], "request_id": "my_id-1"})
        _, listed = await post(server, None, f"/v1/responses/{first['id']}/input_items", "GET")
        references = [{"id": listed["data"][0]["id"]}, {"type": "item_reference", "id": first["output"][0]["id"]}]
        status, second = await post(server, {"input": [*references, {"role": "user", "content": "two"}]})
        assert status == 200, second
        _, listed = await post(server, None, f"/v1/responses/{second['id']}/input_items?order=asc", "GET")
    assert prompts(engine)[-1] == "<user>one\n<assistant>hello\n<user>two\n<assistant>"
    assert [item["role"] for item in listed["data"]] == ["user", "assistant", "user"]
    assert listed["data"][1] == first["output"][0], "a reference is kept as what it refers to"


@pytest.mark.parametrize("item_id", ["msg_1", "msg_abc_0", "x"])
async def test_a_reference_to_what_is_not_kept_is_a_404(item_id: str) -> None:
    engine = ScriptedEngine(reply=text_reply("hello"))
    async with live_server(engine) as server:
        await post(server, {"input": "one", "request_id": "abc", "store": False})
        status, body = await post(server, {"input": [{"type": "item_reference", "id": item_id}]})
    assert (status, body["error"]["code"], body["error"]["param"]) == (404, "item_not_found", "input")


async def test_a_socket_continues_what_is_stored_nowhere_and_another_socket_does_not() -> None:
    """OpenAI's WebSocket mode; agents that store nothing send the new items only."""
    engine = ScriptedEngine(reply=text_reply("ok"))
    async with live_server(engine) as server, session(server.port, "/v1/responses") as socket:
        first = (await turn(socket, input="one"))["response"]
        second = (await turn(socket, input="two", previous_response_id=first["id"]))["response"]
        reference = {"type": "item_reference", "id": second["output"][0]["id"]}
        third = await turn(socket, input=[reference, {"role": "user", "content": "three"}])
        assert third["type"] == "response.completed"
        async with session(server.port, "/v1/responses") as other:
            refused = await turn(other, input="two", previous_response_id=first["id"])
        assert (refused["error"]["code"], refused["status"]) == ("previous_response_not_found", 400)
        status, _ = await post(server, None, f"/v1/responses/{first['id']}", "GET")
        assert status == 404
    assert prompts(engine)[1:] == [
        "<user>one\n<assistant>ok\n<user>two\n<assistant>",
        "<assistant>ok\n<user>three\n<assistant>",
    ]


async def test_a_socket_keeps_a_bounded_number_of_answers() -> None:
    engine = ScriptedEngine(reply=text_reply("ok"))
    async with live_server(engine) as server, session(server.port, "/v1/responses") as socket:
        made = [(await turn(socket, input=str(index)))["response"]["id"] for index in range(66)]
        assert (await turn(socket, input="more", previous_response_id=made[0]))["type"] == "error"
        assert (await turn(socket, input="more", previous_response_id=made[-1]))["type"] == "response.completed"


async def test_a_refused_continuation_drops_what_it_continues() -> None:
    engine = ScriptedEngine(reply=text_reply("ok"))
    output = {"type": "function_call_output", "call_id": "call_none", "output": "x"}
    async with live_server(engine) as server, session(server.port, "/v1/responses") as socket:
        id = (await turn(socket, input="one"))["response"]["id"]
        refused = await turn(socket, input=[output], previous_response_id=id)
        assert (refused["status"], refused["error"]["param"]) == (400, "input[0].call_id")
        assert (await turn(socket, input="two", previous_response_id=id))["error"]["code"] == "previous_response_not_found"


async def test_a_warm_up_computes_its_input_and_answers_with_an_id_to_continue() -> None:
    """`generate: false` of OpenAI's WebSocket mode, which Codex sends before the first turn."""
    engine = ScriptedEngine(reply=text_reply("ok"))
    async with live_server(engine) as server, session(server.port, "/v1/responses") as socket:
        ended = await turn(socket, input="one", generate=False, min_tokens=3)
        assert [event["type"] for event in socket.events] == ["response.created", "response.in_progress", "response.completed"]
        warm = ended["response"]
        assert (warm["status"], warm["output"], warm["usage"]["output_tokens"]) == ("completed", [], 0)
        assert warm["usage"]["input_tokens"] == len("<user>one\n")
        [spec] = engine.specs.values()
        assert (prompts(engine), spec.max_tokens) == (["<user>one\n"], 1)
        answer = await turn(socket, previous_response_id=warm["id"])
        assert answer["response"]["output"][0]["content"][0]["text"] == "ok"
        await turn(socket, instructions="be brief", generate=False, input=[])
        refused = await turn(socket, generate=False)
        assert refused["error"]["param"] in ("input", "messages")
    assert prompts(engine)[1:] == ["<user>one\n<assistant>", "<system>be brief\n"]


async def test_the_tokens_of_an_input_are_counted_without_answering_it() -> None:
    engine = ScriptedEngine(reply=text_reply("ok"))
    async with live_server(engine) as server:
        _, first = await post(server, {"input": "one"})
        body = {"input": "two", "instructions": "be brief", "previous_response_id": first["id"], "zork": 1}
        status, counted = await post(server, body, "/v1/responses/input_tokens")
        _, second = await post(server, body)
        status_of_none, refusal = await post(server, {}, "/v1/responses/input_tokens")
        _, long = await post(server, {"input": "a" * 5000}, "/v1/responses/input_tokens")
        async with request(server.port, "POST", "/v1/responses/input_tokens", body) as response:
            assert response.headers["warning"].endswith('"parameters ignored: zork"')
    assert (status, counted["object"]) == (200, "response.input_tokens")
    assert counted["input_tokens"] == second["usage"]["input_tokens"]
    assert (status_of_none, refusal["error"]["param"]) == (400, "input")
    assert long["input_tokens"] > engine.info.max_model_len, "what does not fit is counted, too"


async def test_a_conversation_is_compacted_to_a_summary_that_goes_before_the_next_message() -> None:
    engine = ScriptedEngine(reply=text_reply("They launch on Tuesday."))
    call = {"type": "function_call", "call_id": "c", "name": "day", "arguments": "{}"}
    items = [
        {"role": "system", "content": "Speak plainly."},
        {"role": "user", "content": "When do we launch?"},
        call,
        {"type": "function_call_output", "call_id": "c", "output": "Tuesday"},
    ]
    async with live_server(engine) as server:
        status, compacted = await post(server, {"model": "scripted", "input": items}, "/v1/responses/compact")
        assert status == 200, compacted
        _, answer = await post(server, {"input": [*compacted["output"], {"role": "user", "content": "Go on."}]})
        _, counted = await post(server, {"input": compacted["output"]}, "/v1/responses/input_tokens")
    asked, continued = prompts(engine)
    assert asked.startswith("<user>")
    assert all(text in asked for text in ("Speak plainly.", "When do we launch?", 'calls day with "{}"', "tool: Tuesday"))
    assert next(iter(engine.specs.values())).max_tokens < 4096 - len(asked), "a model that rambles must end"
    assert compacted["object"] == "response.compaction"
    assert [item["type"] for item in compacted["output"]] == ["message", "compaction"]
    assert compacted["usage"]["output_tokens"] > 0
    summary = "Summary of the conversation so far:\n\nThey launch on Tuesday."
    assert continued == f"<system>Speak plainly.\n<user>{summary}\n\nGo on.\n<assistant>"
    assert answer["status"] == "completed"
    assert counted["input_tokens"] == len(f"<system>Speak plainly.\n<user>{summary}\n<assistant>")


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": "x"}, "model"),
        ({"model": "scripted"}, "input"),
        ({"model": "scripted", "input": "a" * 5000}, "input"),
        ({"model": "other", "input": "x"}, "model"),
        ({"model": "scripted", "previous_response_id": "resp_none"}, "previous_response_id"),
    ],
)
async def test_what_can_not_be_compacted_is_refused_by_name(body: dict[str, Any], param: str) -> None:
    async with live_server(ScriptedEngine()) as server:
        status, answer = await post(server, body, "/v1/responses/compact")
    assert (status in (400, 404), answer["error"]["param"]) == (True, param)


async def test_a_model_that_writes_no_summary_is_an_error_and_no_lost_conversation() -> None:
    async with live_server(ScriptedEngine(reply=text_reply(""))) as server:
        status, answer = await post(server, {"model": "scripted", "input": "x"}, "/v1/responses/compact")
    assert (status, answer["error"]["message"]) == (500, "the model wrote no summary")

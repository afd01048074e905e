"""What the Open Responses compliance suite asks of a server, with the published types: prints each case that holds.

The suite itself (github.com/openresponses/openresponses, `bun run test:compliance`) is no package.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import openresponses_types.types as published
from pydantic import BaseModel
from websockets.sync.client import ClientConnection, connect

BASE_URL = f"{sys.argv[1]}/v1"
MODEL = sys.argv[2]
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather at a place.",
    "parameters": {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]},
}
EVENTS: dict[str, type[BaseModel]] = {
    next(iter(member.model_fields["type"].annotation)).value: member  # type: ignore[arg-type]
    for name, member in vars(published).items()
    if name.endswith("StreamingEvent")
}
CASES: list[Callable[[], None]] = []
Event = dict[str, Any]


def case(check: Callable[[], None]) -> Callable[[], None]:
    CASES.append(check)
    return check


def user(text: str) -> dict[str, Any]:
    return {"type": "message", "role": "user", "content": text}


def post(path: str, **body: Any) -> httpx.Response:
    return httpx.post(f"{BASE_URL}{path}", json=body, timeout=60)


def completed(response: Any) -> dict[str, Any]:
    """A response object that has the published type, is completed, and has output."""
    published.ResponseResource.model_validate(response)
    assert response["status"] == "completed", response["status"]
    assert response["output"]
    return dict(response)


def answered(*items: Any, **fields: Any) -> dict[str, Any]:
    answer = post("/responses", model=MODEL, input=list(items), **fields)
    assert answer.status_code == 200, answer.text
    return completed(answer.json())


def checked(event: Event) -> Event:
    """An event that has its published type."""
    EVENTS[event["type"]].model_validate(event)
    return event


@contextmanager
def socket() -> Iterator[ClientConnection]:
    with connect(f"{BASE_URL.replace('http', 'ws', 1)}/responses") as connection:
        yield connection


def turn(connection: ClientConnection, **fields: Any) -> Event:
    """The terminal event of one turn."""
    connection.send(json.dumps({"type": "response.create", "model": MODEL, **fields}))
    while True:
        event = json.loads(connection.recv(timeout=30))
        if event["type"] == "error":
            published.WebSocketErrorEvent.model_validate(event)
            return dict(event)
        if checked(event)["type"] in ("response.completed", "response.failed", "response.incomplete"):
            return dict(event)


def code(event: Event) -> str:
    assert event["type"] == "error", event["type"]
    return str(event["error"]["code"])


@case
def basic_response() -> None:
    answered(user("Say hello in three words."))


@case
def assistant_phase() -> None:
    thought = {"type": "message", "role": "assistant", "phase": "commentary", "content": "I should repeat the number."}
    answered(thought, {**thought, "phase": "final_answer", "content": "Four."}, user("Repeat the number."))


@case
def streaming_response() -> None:
    with httpx.stream(
        "POST", f"{BASE_URL}/responses", json={"model": MODEL, "input": [user("Count.")], "stream": True}
    ) as answer:
        events = [json.loads(line.removeprefix("data: ")) for line in answer.iter_lines() if line.startswith("data: {")]
    assert len([checked(event) for event in events]) > 4
    completed(events[-1]["response"])


@case
def system_prompt() -> None:
    answered({"type": "message", "role": "system", "content": "You are a pirate."}, user("Say hello."))


@case
def tool_calling() -> None:
    answer = post("/responses", model=MODEL, input=[user("How is the weather in Rome?")], tools=[WEATHER]).json()
    assert [item["type"] for item in completed(answer)["output"]] == ["function_call"]


@case
def image_input_is_refused_by_name() -> None:
    picture = {"type": "input_image", "image_url": "data:image/png;base64,iVBORw0KGgo="}
    answer = post("/responses", model=MODEL, input=[{**user(""), "content": [{"type": "input_text", "text": "?"}, picture]}])
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "input[0].content[1]")


@case
def multi_turn() -> None:
    answered(user("My name is Alice."), {"type": "message", "role": "assistant", "content": "Hello Alice!"}, user("My name?"))


@case
def compact_response() -> None:
    said = {"type": "message", "role": "assistant", "content": "It is Tuesday."}
    answer = post("/responses/compact", model=MODEL, input=[user("When?"), said], prompt_cache_key="key")
    published.CompactResource.model_validate(answer.json())
    assert [item["type"] for item in answer.json()["output"]] == ["compaction"]


@case
def compact_missing_model() -> None:
    assert post("/responses/compact", input=[user("Compact this.")]).status_code == 400


@case
def websocket_response() -> None:
    with socket() as connection:
        completed(turn(connection, input=[user("Count.")])["response"])


@case
def websocket_sequential_responses() -> None:
    with socket() as connection:
        for text in ("first", "second"):
            completed(turn(connection, store=False, input=text)["response"])


@case
def websocket_continuation() -> None:
    with socket() as connection:
        first = completed(turn(connection, store=False, input="The word is cobalt.")["response"])
        completed(turn(connection, store=False, previous_response_id=first["id"], input="Which word?")["response"])


@case
def websocket_reconnect_store_false_recovery() -> None:
    with socket() as connection:
        first = completed(turn(connection, store=False, input="The word is copper.")["response"])
    with socket() as connection:
        lost = turn(connection, store=False, previous_response_id=first["id"], input="Which word?")
        assert code(lost) == "previous_response_not_found"
        completed(turn(connection, store=False, input=[user("Begin anew.")])["response"])


@case
def websocket_previous_response_not_found() -> None:
    with socket() as connection:
        lost = turn(connection, store=False, previous_response_id="resp_missing", input="Fail.")
    assert code(lost) == "previous_response_not_found"


@case
def websocket_failed_continuation_evicts_cache() -> None:
    output = {"type": "function_call_output", "call_id": "call_missing", "output": "nothing"}
    with socket() as connection:
        first = completed(turn(connection, store=False, input="The word is ember.")["response"])
        code(turn(connection, store=False, previous_response_id=first["id"], input=[output]))
        again = turn(connection, store=False, previous_response_id=first["id"], input="Which word?")
    assert code(again) == "previous_response_not_found"


@case
def websocket_compact_new_chain() -> None:
    output = post("/responses/compact", model=MODEL, input=[user("The word is slate.")]).json()["output"]
    with socket() as connection:
        completed(turn(connection, store=False, tools=[], input=[*output, user("Go on.")])["response"])


@case
def websocket_generate_false() -> None:
    with socket() as connection:
        warm = turn(connection, store=False, generate=False, input=[user("The word is jade.")])["response"]
        published.ResponseResource.model_validate(warm)
        completed(turn(connection, store=False, previous_response_id=warm["id"], input="Which word?")["response"])


for check in CASES:
    check()
    print(check.__name__)

"""Bodies of any size as JSON: what they hold is counted, what is too much refused, and long lists of ids read in slices."""

from __future__ import annotations

import json
import random
from typing import Any

import msgspec
import pytest
from anyio import create_task_group
from anyio.lowlevel import checkpoint

from streamserve.errors import InvalidRequest
from streamserve.server.http.bodies.json_body import MAX_ELEMENTS, MAX_MEMBER_BYTES, MAX_TOKEN_IDS, TokenIds, parse_object
from streamserve.server.http.bodies.json_structure import JsonStructure
from streamserve.server.http.bodies.large_work import LargeWork
from streamserve.server.http.bodies.request_body import parse
from tests.support.live_server import live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

MANY = MAX_ELEMENTS + 2


def body(**members: Any) -> bytes:
    return json.dumps(members, separators=(",", ":")).encode()


def values(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(3 if depth > 4 else 5)
    if kind == 3:
        return [values(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind == 4:
        return {text(rng): values(rng, depth + 1) for _ in range(rng.randrange(4))}
    return text(rng) if kind else rng.randrange(1000)


def text(rng: random.Random) -> str:
    return "".join(rng.choice('ab",:[]{}\\') for _ in range(rng.randrange(8)))


def held(value: Any) -> tuple[int, int, int]:
    """Containers, strings and commas of a value as JSON."""
    if isinstance(value, str):
        return 0, 1, 0
    if not isinstance(value, list | dict):
        return 0, 0, 0
    inner = [held(child) for child in (value.values() if isinstance(value, dict) else value)]
    containers, strings, commas = (sum(counts) for counts in zip(*inner, strict=True)) if inner else (0, 0, 0)
    return containers + 1, strings + (len(value) if isinstance(value, dict) else 0), commas + max(0, len(value) - 1)


@pytest.mark.parametrize("seed", range(50))
def test_what_a_text_holds_is_counted_wherever_it_is_cut(seed: int) -> None:
    rng = random.Random(seed)
    value = [values(rng) for _ in range(5)]
    data, structure = json.dumps(value).encode(), JsonStructure()
    while data:
        cut = rng.randrange(1, 9)
        structure.feed(data[:cut], max_strings=1 << 20)
        data = data[cut:]
    assert (structure.containers, structure.strings, structure.commas) == held(value)


@pytest.mark.parametrize(
    "text",
    [
        b'{"messages":[' + b",".join([b'{"role":"user","content":""}'] * 30_000) + b"]}",
        b'{"x":[' + b",".join([b"[]"] * MANY) + b"]}",
        b"{" + b",".join(b'"k%d":0' % number for number in range(MANY)) + b"}",
        b'{"x":[' + b",".join([b'""'] * MANY) + b"]}",
    ],
    ids=["messages", "arrays", "names", "strings"],
)
def test_a_body_that_holds_too_much_is_refused_before_it_is_built(text: bytes) -> None:
    """500 000 empty messages in 16 MB held every other stream for 11 s, five million empty arrays for 1.5 s."""
    with pytest.raises(InvalidRequest, match=f"more than {MAX_ELEMENTS} objects, arrays and strings"):
        parse_object(text)


def test_a_member_of_too_many_numbers_is_refused_by_name() -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_object(body(zork=[0] * MANY))
    assert refused.value.param == "zork"


@pytest.mark.parametrize("ids", [[[7] * MAX_TOKEN_IDS, [7]], [7] * (MAX_TOKEN_IDS + 1)], ids=["lists", "flat"])
def test_more_token_ids_than_can_be_freed_at_once_are_refused(ids: list[Any]) -> None:
    with pytest.raises(InvalidRequest, match=f"at most {MAX_TOKEN_IDS} token ids") as refused:
        parse_object(body(prompt=ids, n=1))
    assert refused.value.param == "prompt"


def test_a_text_that_takes_long_to_decode_is_refused_by_the_name_of_its_member() -> None:
    text = "x" * (MAX_MEMBER_BYTES - 1)
    with pytest.raises(InvalidRequest, match=f"at most {MAX_MEMBER_BYTES} bytes") as refused:
        parse_object(body(user="a", prompt=text))
    assert refused.value.param == "prompt"
    assert parse_object(body(user=text[:-10], prompt=text[:-10])).keys() == {"user", "prompt"}


def test_a_long_text_full_of_commas_and_quotes_is_one_string() -> None:
    prompt = '",[{' * MANY
    assert parse_object(body(prompt=prompt)) == {"prompt": prompt}


@pytest.mark.parametrize("prompt", [list(range(300_000)), [list(range(90_000)), [1], list(range(5))]], ids=["flat", "lists"])
async def test_honest_lists_of_token_ids_are_read_whole_while_others_run(prompt: list[Any]) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await checkpoint()

    async with create_task_group() as tasks:
        tasks.start_soon(others)
        parsed = await parse(b" " + json.dumps({"prompt": prompt, "n": 1}).encode(), LargeWork())
        tasks.cancel_scope.cancel()
    assert parsed.fields == {"prompt": prompt, "n": 1}
    assert type(parsed.fields["prompt"]) is TokenIds
    assert turns > 1


@pytest.mark.parametrize("wrong", ['"a"', "1.5", "[1]", "99999999999", "null", "[[1]]", "{}"])
def test_what_is_no_token_id_in_a_long_list_is_refused_by_name(wrong: str) -> None:
    for place in (0, MANY // 2, MANY):
        ids = ["7"] * MANY
        ids.insert(place, wrong)
        with pytest.raises(InvalidRequest) as refused:
            parse_object(b'{"prompt":[%b]}' % ",".join(ids).encode())
        assert refused.value.param == "prompt"


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}] * 9000}, "messages"),
        ("/v1/responses", {"input": [{"role": "user", "content": ""}] * 9000}, "input"),
        ("/v1/completions", {"prompt": ["x"] * 5000}, "prompt"),
        ("/v1/completions", {"prompt": "x", "stop": ["stop"] * 40_000}, "stop"),
        ("/v1/completions", {"prompt": [1] * MANY}, "prompt"),
        ("/tokenize", {"prompt": [1] * MANY}, "prompt"),
        ("/detokenize", {"tokens": [300] * MANY}, "tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_every_count_has_a_bound_that_names_its_field(path: str, fields: dict[str, Any], param: str) -> None:
    async with (
        live_server(ScriptedEngine(reply=text_reply("fine"))) as server,
        request(server.port, "POST", path, {"model": "scripted", **fields}) as response,
    ):
        error = msgspec.json.decode(await response.body())["error"]
    assert (response.status, error["param"]) == (400, param), error

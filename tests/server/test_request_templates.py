"""Templates that come with requests: written out where they can do no harm, however long or large they grow."""

from __future__ import annotations

from typing import Any

import anyio
import httpx
import pytest

from tests.support.live_server import LiveServer, live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

NESTED_LOOPS = "{% for i in range(99999) %}" * 4 + "x" + "{% endfor %}" * 4


async def tokenize(server: LiveServer, template: str, **more: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.base_url, timeout=60) as client:
        messages = [{"role": "user", "content": "你好"}]
        return await client.post("/tokenize", json={"messages": messages, "chat_template": template, **more})


def text_of(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return bytes(response.json()["tokens"]).decode()


async def test_a_requests_template_writes_its_prompt() -> None:
    async with live_server(ScriptedEngine(), trust_request_chat_template=True) as server:
        template = "{{ eos_token }}[{{ messages[0].content }}|{{ colour }}|{{ add_generation_prompt }}]"
        assert text_of(await tokenize(server, template, chat_template_kwargs={"colour": "红"})) == "</s>[你好|红|True]"


async def test_a_requests_template_answers_a_chat() -> None:
    body = {
        "messages": [{"role": "user", "content": "a"}],
        "chat_template": "{{ reasoning_effort }}",
        "reasoning_effort": "low",
        "max_tokens": 2,
    }
    async with (
        live_server(ScriptedEngine(reply=text_reply("ok")), trust_request_chat_template=True) as server,
        httpx.AsyncClient(base_url=server.base_url, timeout=60) as client,
    ):
        answered = await client.post("/v1/chat/completions", json=body)
        assert answered.json()["usage"]["prompt_tokens"] == len("low")
        without = await client.post("/v1/chat/completions", json={**body, "chat_template": "x"})
        assert without.json()["usage"]["prompt_tokens"] == len("x")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (NESTED_LOOPS, "processor time"),
        ("{{ 9 ** (9 ** 9) }}", "processor time"),
        ("{{ 'x' * 10 ** 10 }}", "MiB"),
        ("{% set ns = namespace(t='x') %}{% for i in range(40) %}{% set ns.t = ns.t + ns.t %}{% endfor %}", "MiB"),
        ("{% if %}", "syntax error"),
        ("{% for i in [1] %}" * 30 + "{% endfor %}" * 30, "statically nested"),
        ("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}", "recursion"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{{ 'x'.encode('nonsense') }}", "unknown encoding"),
        ("{{ raise_exception('no') }}", "no"),
    ],
)
async def test_what_a_requests_template_does_wrong_is_a_bad_request(template: str, reason: str) -> None:
    async with live_server(ScriptedEngine(), trust_request_chat_template=True) as server:
        response = await tokenize(server, template)
        assert response.status_code == 400
        error = response.json()["error"]
        assert error["param"] in ("chat_template", "messages")
        assert reason in error["message"]


async def test_others_are_answered_while_a_template_does_not_end() -> None:
    async with (
        live_server(ScriptedEngine(), trust_request_chat_template=True) as server,
        httpx.AsyncClient(base_url=server.base_url, timeout=60) as client,
    ):
        ended = anyio.Event()

        async def endless() -> None:
            assert (await tokenize(server, NESTED_LOOPS)).status_code == 400
            ended.set()

        num_answered = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(endless)
            while not ended.is_set():
                assert (await client.post("/tokenize", json={"prompt": "a"})).status_code == 200
                num_answered += 1
        # Were it written out on the event loop, one could be answered before it and one that waited behind it.
        assert num_answered > 2


async def test_without_trust_a_requests_template_is_refused_by_name() -> None:
    async with live_server(ScriptedEngine()) as server:
        response = await tokenize(server, "x")
        assert (response.status_code, response.json()["error"]["param"]) == (400, "chat_template")

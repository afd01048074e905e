"""Token ids that a model can't compute or sample, over HTTP: their request is refused or fails, and no other one notices."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import httpx
import pytest

from tests.support.tiny_server import TinyServer, tiny_server

pytestmark = pytest.mark.anyio

EMBEDDED = 220
"""Tokens that the model knows: the tokenizer makes 231 of the first byte of an ideograph."""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TinyServer]:
    folder = tmp_path_factory.mktemp("tiny-llama")
    async with tiny_server(folder, vocab_size=EMBEDDED, trust_request_chat_template=True) as server:
        yield server


async def post(server: TinyServer, path: str, body: dict[str, Any]) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.base_url, timeout=20, trust_env=False) as client:
        return await client.post(f"/{path}", json={"model": "tiny", **body})


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("completions", {"prompt": "summer, 秋"}, "prompt"),
        ("completions", {"prompt": ["summer", "秋"]}, "prompt"),
        ("chat/completions", {"messages": [{"role": "user", "content": "秋"}]}, "messages"),
        ("chat/completions", {"messages": [{"role": "user", "content": "a"}], "chat_template": "{{ messages }}秋"}, "messages"),
        ("responses", {"input": "秋"}, "input"),
    ],
)
async def test_text_with_a_token_that_the_model_has_no_embedding_of_is_refused(
    server: TinyServer, path: str, body: dict[str, Any], param: str
) -> None:
    """A fine-tune had added tokens to its tokenizer alone: four such texts ended the server."""
    refused = await post(server, path, body)
    assert refused.status_code == 400
    error = refused.json()["error"]
    assert error["param"] == param
    assert "'ç', a token (id 231)" in error["message"]
    assert (await post(server, "completions", {"prompt": "a", "max_tokens": 2})).status_code == 200


async def test_lists_of_tokens_that_the_model_never_samples_cost_nobody_anything(server: TinyServer) -> None:
    """The end of sequence of this tokenizer, too, is a token that the model lacks."""
    body = {"prompt": "a", "max_tokens": 3, "min_tokens": 3, "bad_words": ["秋"], "temperature": 0}
    answered = await post(server, "completions", body)
    assert answered.json()["usage"]["completion_tokens"] == 3
    structured = await post(server, "completions", {**body, "structured_outputs": {"choice": ["x"]}})
    assert structured.status_code == 400, "without an end of sequence there are no structured outputs"


async def test_a_request_that_excludes_every_token_gets_an_error_and_no_other_token(server: TinyServer) -> None:
    """It was a 200 full of token 0: where the choice runs out later, the answer says so then."""
    body = {"prompt": "a", "allowed_token_ids": list(b"a"), "max_tokens": 5}
    refused = await post(server, "completions", {**body, "bad_words": ["a"]})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "allowed_token_ids")
    assert "bad_words" in refused.json()["error"]["message"]
    failed = await post(server, "completions", {**body, "bad_words": ["aaa"]})
    assert (failed.status_code, failed.json()["error"]["code"]) == (500, "no_token_possible")

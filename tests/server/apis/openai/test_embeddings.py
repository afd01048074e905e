"""/v1/embeddings over a real socket: the official client, unmodified, against transformers' states."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import anyio
import numpy as np
import openai
import pytest

from streamserve.types import Pooling
from tests.support.live_server import live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tiny_server import TinyServer, tiny_server

pytestmark = pytest.mark.anyio

PATH = "/v1/embeddings"
TEXTS = ["The river rose", "a", "and fell again, and rose, and fell: more than one step has room for"]


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[TinyServer]:
    async with tiny_server(tmp_path_factory.mktemp("tiny-llama")) as server:
        yield server


async def post(port: int, body: dict[str, Any], status: int = 200) -> Any:
    async with request(port, "POST", PATH, body) as response:
        answer = json.loads(await response.body())
        assert response.status == status, answer
        return answer


def expected(server: TinyServer, text: str, pooling: Pooling) -> Any:
    return server.model.embedding(list(text.encode()), pooling)


async def test_the_official_client_gets_the_vectors_of_transformers(server: TinyServer) -> None:
    async with openai.AsyncOpenAI(base_url=server.base_url, api_key="none", max_retries=0) as client:
        answer = await client.embeddings.create(model="tiny", input=TEXTS)
        short = await client.embeddings.create(model="tiny", input=TEXTS[0], dimensions=8, encoding_format="float")
    assert [item.index for item in answer.data] == [0, 1, 2]
    for item, text in zip(answer.data, TEXTS, strict=True):
        np.testing.assert_allclose(item.embedding, expected(server, text, Pooling()), atol=2e-5)
    np.testing.assert_allclose(short.data[0].embedding, expected(server, TEXTS[0], Pooling(dimensions=8)), atol=2e-5)
    num_tokens = sum(map(len, TEXTS))
    assert (answer.usage.prompt_tokens, answer.usage.total_tokens) == (num_tokens, num_tokens)
    assert answer.model == "tiny"


async def test_inputs_may_be_texts_and_token_ids(server: TinyServer) -> None:
    ids = [list(text.encode()) for text in TEXTS]
    vectors = [(await post(server.port, {"input": given}))["data"] for given in (TEXTS, ids)]
    assert vectors[0] == vectors[1]
    one = [(await post(server.port, {"input": given}))["data"][0]["embedding"] for given in (TEXTS[0], ids[0])]
    assert one == [vectors[0][0]["embedding"]] * 2


async def test_base64_is_the_bytes_of_the_numbers(server: TinyServer) -> None:
    [text] = (await post(server.port, {"input": "a", "encoding_format": "base64"}))["data"]
    [numbers] = (await post(server.port, {"input": "a"}))["data"]
    assert np.frombuffer(base64.b64decode(text["embedding"]), dtype="<f4").tolist() == numbers["embedding"]


async def test_vectors_of_any_length_are_given_where_they_are_asked_for(server: TinyServer) -> None:
    [item] = (await post(server.port, {"input": TEXTS[0], "normalize": False}))["data"]
    np.testing.assert_allclose(item["embedding"], expected(server, TEXTS[0], Pooling(normalize=False)), atol=2e-5)
    [last] = (await post(server.port, {"input": TEXTS[0], "truncate_prompt_tokens": 4}))["data"]
    np.testing.assert_allclose(last["embedding"], expected(server, TEXTS[0][-4:], Pooling()), atol=2e-5)


async def test_embeddings_are_made_while_others_generate(server: TinyServer) -> None:
    prompts = [f"{place} " * (3 * place + 1) for place in range(20)]
    texts: list[Any] = []

    async def generate() -> None:
        body = {"prompt": "x", "max_tokens": 60, "temperature": 0, "ignore_eos": True}
        async with request(server.port, "POST", "/v1/completions", body) as response:
            texts.append(json.loads(await response.body())["choices"][0]["text"])

    await generate()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(generate)
        answer = await post(server.port, {"input": prompts})
    assert texts[0] == texts[1]
    for item, text in zip(answer["data"], prompts, strict=True):
        np.testing.assert_allclose(item["embedding"], expected(server, text, Pooling()), atol=2e-5)


@pytest.mark.parametrize(
    ("fields", "status", "code", "param"),
    [
        ({}, 400, "invalid_value", "input"),
        ({"input": []}, 400, "invalid_value", "input"),
        ({"input": ""}, 400, "invalid_value", "input"),
        ({"input": ["a", [1]]}, 400, "invalid_value", "input"),
        ({"input": [257]}, 400, "invalid_value", "input"),
        ({"input": "a" * 257}, 400, "context_length_exceeded", "input"),
        ({"input": "a", "dimensions": 97}, 400, "invalid_value", "dimensions"),
        ({"input": "a", "dimensions": 0}, 400, "invalid_value", "dimensions"),
        ({"input": "a", "encoding_format": "hex"}, 400, "invalid_value", "encoding_format"),
        ({"input": ["a"] * 1025}, 400, "invalid_value", "input"),
        ({"input": "a", "model": "other"}, 404, "model_not_found", "model"),
    ],
)
async def test_what_is_wrong_is_refused_by_name(
    server: TinyServer, fields: dict[str, Any], status: int, code: str, param: str
) -> None:
    error = (await post(server.port, fields, status))["error"]
    assert (error["code"], error["param"]) == (code, param)


async def test_a_whole_context_is_embedded(server: TinyServer) -> None:
    [item] = (await post(server.port, {"input": "b" * 256}))["data"]
    np.testing.assert_allclose(item["embedding"], expected(server, "b" * 256, Pooling()), atol=2e-5)


async def test_a_client_that_leaves_aborts_all_its_prompts() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as live, anyio.create_task_group() as tasks:
        tasks.start_soon(post, live.port, {"input": ["a", "b"]})
        sequences = await engine.sequences(2)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            assert sorted(await engine.aborts(2)) == sorted(sequences)


async def test_embeddings_can_be_cancelled() -> None:
    engine = ScriptedEngine()
    errors: list[Any] = []

    async def embed(port: int) -> None:
        errors.append(await post(port, {"input": "a", "request_id": "one"}, status=499))

    async with live_server(engine) as live, anyio.create_task_group() as tasks:
        tasks.start_soon(embed, live.port)
        await engine.sequences()
        async with request(live.port, "POST", "/v1/requests/one/cancel") as cancelled:
            assert cancelled.status == 200
    assert errors[0]["error"]["code"] == "aborted"

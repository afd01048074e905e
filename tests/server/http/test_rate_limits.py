"""What a key may still use is told with every answer, and what is refused anyway costs nothing."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import httpx
import openai
import pytest

from streamserve.errors import QueueFull, RateLimited
from streamserve.server.config import ApiKey
from streamserve.server.http.patience import patience_s
from streamserve.server.http.rate_limit_headers import duration
from streamserve.types import Quota, Quotas, Tenant
from tests.server.ws.session import session
from tests.support.live_server import LiveServer, live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

KEYS = [ApiKey(sha256=sha256(name.encode()).digest(), tenant=Tenant(name=name)) for name in ("limited", "free")]
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
BODIES = {
    "/v1/completions": {"prompt": "a", "max_tokens": 4},
    "/v1/chat/completions": CHAT,
    "/v1/messages": CHAT,
    "/v1/responses": {"input": "a"},
    "/v1/embeddings": {"input": "a"},
    "/invocations": CHAT,
}
LIMITS = {
    "x-ratelimit-limit-requests": "60",
    "x-ratelimit-remaining-requests": "58",
    "x-ratelimit-reset-requests": "1.5s",
    "x-ratelimit-limit-tokens": "1000",
    "x-ratelimit-remaining-tokens": "0",
    "x-ratelimit-reset-tokens": "1m12s",
}


def limited_engine() -> ScriptedEngine:
    engine = ScriptedEngine(reply=text_reply("ok"))
    engine.said_quotas["limited"] = Quotas(Quota(60, 58.5), Quota(1000, -200))
    return engine


async def post(server: LiveServer, path: str, key: str = "limited", **fields: Any) -> httpx.Response:
    async with httpx.AsyncClient(base_url=server.base_url, headers={"Authorization": f"Bearer {key}"}) as client:
        return await client.post(path, json={**BODIES[path], **fields})


def limits_of(response: httpx.Response) -> dict[str, str]:
    return {name: value for name, value in response.headers.items() if name.startswith("x-ratelimit")}


@pytest.mark.parametrize("path", BODIES)
async def test_an_answer_says_what_its_key_may_still_use(path: str) -> None:
    async with live_server(limited_engine(), file_keys=KEYS) as server:
        assert limits_of(await post(server, path)) == LIMITS
        assert limits_of(await post(server, path, "free")) == {}
        if path not in ("/v1/embeddings", "/invocations"):
            assert limits_of(await post(server, path, stream=True)) == LIMITS
        if path == "/v1/chat/completions":
            assert limits_of(await post(server, path, stream=True, resumable=True)) == LIMITS


@pytest.mark.parametrize("path", BODIES)
async def test_a_refusal_that_is_known_is_sent_before_the_body_is_read(path: str) -> None:
    engine = limited_engine()
    engine.refuses_all = RateLimited("this key may use 60 requests a minute", retry_after_s=3.0)
    async with live_server(engine, file_keys=KEYS) as server:
        key = {"Authorization": "Bearer limited", "Content-Length": "1000000"}
        async with request(server.port, "POST", path, headers=key) as response:
            assert response.status == 429
            assert response.headers.items() >= (LIMITS | {"retry-after": "3", "retry-after-ms": "3000"}).items()
    assert not engine.num_asked


async def test_a_refused_socket_message_is_answered_and_the_socket_goes_on() -> None:
    engine = limited_engine()
    engine.refuses_all = QueueFull("full")
    async with live_server(engine) as server, session(server.port) as socket:
        await socket.send({"type": "completion.create", "stream_id": "a", "prompt": "a"})
        assert (await socket.receive())["error"]["code"] == "queue_full"
        engine.refuses_all = None
        await socket.send({"type": "completion.create", "stream_id": "a", "prompt": "a"})
        assert (await socket.receive())["type"] == "completion.chunk"


async def test_openais_client_gives_up_after_its_retries_and_reads_what_is_left() -> None:
    engine = limited_engine()
    async with live_server(engine, file_keys=KEYS) as server:
        async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="limited", max_retries=1) as client:
            answer = await client.completions.with_raw_response.create(model="scripted", prompt="a", max_tokens=4)
            assert answer.headers["x-ratelimit-remaining-requests"] == "58"
            assert answer.parse().choices[0].text == "ok"
            engine.refuses_all = RateLimited("enough", retry_after_s=0.01)
            with pytest.raises(openai.RateLimitError) as refused:
                await client.completions.create(model="scripted", prompt="a", max_tokens=4)
        assert refused.value.response.headers["x-ratelimit-reset-tokens"] == "1m12s"


async def test_how_long_openais_client_waits_goes_to_the_engine_with_its_request() -> None:
    engine = limited_engine()
    async with live_server(engine, file_keys=KEYS) as server:
        async with openai.AsyncOpenAI(base_url=f"{server.base_url}/v1", api_key="free", timeout=7) as client:
            await client.completions.create(model="scripted", prompt="a", max_tokens=4, n=2)
            patient = client.with_options(timeout=300)
            async for _ in await patient.completions.create(model="scripted", prompt="a", max_tokens=4, stream=True):
                continue
            await patient.responses.create(model="scripted", input="a")
            await patient.responses.create(model="scripted", input="a", background=True)
            await engine.sequences(5)
    # A stream is never silent for 300 s; in the background nobody waits.
    assert [spec.patience_s for spec in engine.specs.values()] == [7, None, None, 300, None]


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"prefer": "respond-async, wait=10"}, 10),
        ({"prefer": "Wait = 2.5"}, 2.5),
        ({"prefer": "await=3"}, None),
        ({"x-stainless-read-timeout": "600.0"}, 600),
        ({"x-stainless-timeout": "45", "x-envoy-expected-rq-timeout-ms": "15000"}, 15),
        ({"x-stainless-read-timeout": "nan"}, None),
        ({"x-stainless-read-timeout": "inf", "prefer": "wait=-1"}, None),
        ({"x-stainless-timeout": "0", "x-envoy-expected-rq-timeout-ms": "soon"}, None),
    ],
)
def test_a_request_says_how_long_its_client_waits(headers: dict[str, str], expected: float | None) -> None:
    assert patience_s(headers) == expected


def test_no_read_timeout_fires_on_a_stream_that_is_never_silent_for_as_long() -> None:
    assert patience_s({"x-stainless-read-timeout": "5"}, silence_s=15) == 5
    assert patience_s({"x-stainless-read-timeout": "600"}, silence_s=15) is None
    assert patience_s({"prefer": "wait=60"}, silence_s=15) == 60


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0, "0ms"), (0.1204, "120ms"), (8.64, "8.64s"), (59.999, "1m0s"), (360.0, "6m0s"), (90.5, "1m30.5s")],
)
def test_times_are_written_as_openai_writes_them(seconds: float, text: str) -> None:
    assert duration(seconds) == text

"""API keys: the exact key opens all but probes and the page, over HTTP and over WebSockets, and nothing like it does."""

from __future__ import annotations

import json
from hashlib import sha256

import pytest
from websockets.exceptions import InvalidStatus

from streamserve.server.http.access import api_keys
from streamserve.types import ANYONE
from tests.server.ws.session import session
from tests.support.live_server import live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine

pytestmark = pytest.mark.anyio

KEY = "Sesame-42"
ALMOST = {
    "suffix": "Sesame-42x",
    "prefix": "xSesame-42",
    "cut": "Sesame-4",
    "upper": "SESAME-42",
    "lower": "sesame-42",
    "two": "Sesame-42 Sesame-42",
    "quoted": '"Sesame-42"',
}
OVER_SOCKETS = {
    "header": lambda key: {"additional_headers": {"Authorization": f"Bearer {key}"}},
    "subprotocol": lambda key: {"subprotocols": ["realtime", f"openai-insecure-api-key.{key}"]},
}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/v1/models", {}, 401),
        ("/v1/models", {"Authorization": "Bearer wrong"}, 401),
        ("/v1/models", {"Authorization": "Basic one"}, 401),
        ("/v1/models", {"Authorization": "Bearer "}, 401),
        ("/v1/models", {"Authorization": "Bearer one"}, 200),
        ("/v1/models", {"Authorization": "bearer two"}, 200),
        ("//v1//models", {}, 401),
        ("/load", {}, 401),
        ("/openapi.json", {}, 401),
        ("/openapi.json", {"Authorization": "Bearer one"}, 200),
        ("/health", {}, 200),
        ("/live", {}, 200),
        ("/ready", {}, 200),
        ("/version", {}, 200),
        ("/metrics", {}, 200),
        ("/", {}, 200),
        ("/chat/chat.css", {}, 200),
    ],
)
async def test_keys_open_all_but_probes_and_the_page(path: str, headers: dict[str, str], status: int) -> None:
    async with live_server(ScriptedEngine(), api_keys=["one", "two"]) as server:
        async with request(server.port, "GET", path, headers=headers) as response:
            assert response.status == status
            if status == 401:
                assert json.loads(await response.body())["error"]["code"] == "invalid_api_key"
                assert response.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize", "/v1/completions", "/invocations", "/v1/requests/a/cancel"])
async def test_nothing_that_works_for_a_request_is_open(path: str) -> None:
    """/tokenize and /detokenize asked for no key: 15 MB of digits took 42 s and 5.3 GB of anybody's choice."""
    async with live_server(ScriptedEngine(), api_keys=["one"]) as server:
        async with request(server.port, "POST", path, b"not even JSON") as response:
            assert response.status == 401


async def test_metrics_can_be_put_behind_the_keys_too() -> None:
    async with live_server(ScriptedEngine(), api_keys=["one"], protects_metrics=True) as server:
        for headers, status in (({}, 401), ({"Authorization": "Bearer one"}, 200)):
            async with request(server.port, "GET", "/metrics", headers=headers) as response:
                assert response.status == status


@pytest.mark.parametrize("key", ALMOST.values(), ids=ALMOST)
async def test_a_key_that_is_almost_right_is_refused(key: str) -> None:
    async with live_server(ScriptedEngine(), api_keys=[KEY]) as server:
        for offered, status in ((key, 401), (KEY, 200)):
            headers = {"Authorization": f"Bearer {offered}"}
            async with request(server.port, "GET", "/v1/models", headers=headers) as response:
                assert response.status == status


@pytest.mark.parametrize("by", OVER_SOCKETS)
@pytest.mark.parametrize("key", [ALMOST[name] for name in ("suffix", "prefix", "cut", "upper", "lower")])
async def test_a_key_that_is_almost_right_opens_no_socket(key: str, by: str) -> None:
    async with live_server(ScriptedEngine(), api_keys=[KEY]) as server:
        with pytest.raises(InvalidStatus) as refused:
            async with session(server.port, **OVER_SOCKETS[by](key)):
                raise AssertionError("the upgrade was accepted")
        assert refused.value.response.status_code == 401
        async with session(server.port, **OVER_SOCKETS[by](KEY)) as client:
            await client.send({"type": "ping"})
            assert (await client.receive())["type"] == "pong"


@pytest.mark.parametrize("name", ["OpenAI-Insecure-Api-Key.", "openai-insecure-api-key", "x-openai-insecure-api-key."])
async def test_a_key_in_another_subprotocol_counts_for_nothing(name: str) -> None:
    async with live_server(ScriptedEngine(), api_keys=[KEY]) as server:
        with pytest.raises(InvalidStatus) as refused:
            async with session(server.port, subprotocols=["realtime", f"{name}{KEY}"]):
                raise AssertionError("the upgrade was accepted")
        assert refused.value.response.status_code == 401


def test_keys_are_kept_as_hashes_and_every_one_is_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[bytes] = []

    def compare(ours: bytes, theirs: bytes) -> bool:
        compared.append(ours)
        return ours == theirs

    monkeypatch.setattr(api_keys.hmac, "compare_digest", compare)
    hashes = [sha256(key.encode()).digest() for key in ("one", KEY, "three")]
    keys = api_keys.ApiKeys([api_keys.ApiKey(sha256=digest, tenant=ANYONE) for digest in hashes])
    for offered in ("one", KEY, "nobody's"):
        compared.clear()
        assert (keys.find([offered.encode()]) is None) == (offered == "nobody's")
        assert compared == hashes, "the time tells which key was near"

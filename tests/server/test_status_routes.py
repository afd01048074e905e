"""The endpoints beside generation, and cross-origin rules."""

from __future__ import annotations

import json
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

import streamserve
from streamserve.server.config import CorsConfig
from tests.support.live_server import LiveServer, live_server
from tests.support.raw_http import RawResponse, request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio


async def json_of(response: RawResponse) -> Any:
    assert response.status == 200
    return json.loads(await response.body())


async def test_models_are_listed_under_every_served_name() -> None:
    async with live_server(ScriptedEngine(), model_names=["a", "org/b"], model_root="/weights") as server:
        async with request(server.port, "GET", "/v1/models") as response:
            listed = await json_of(response)
        async with request(server.port, "GET", "/v1/models/org/b") as response:
            shown = await json_of(response)
        async with request(server.port, "GET", "/v1/models/c") as response:
            assert response.status == 404
    assert [model["id"] for model in listed["data"]] == ["a", "org/b"]
    assert (shown["id"], shown["root"], shown["max_model_len"]) == ("org/b", "/weights", 4096)
    [permission] = shown["permission"]
    assert (permission["object"], permission["allow_sampling"], permission["group"]) == ("model_permission", True, None)


async def test_answers_name_the_model_as_it_was_asked_for() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("x")), model_names=["a", "b"]) as server:
        names = []
        for asked in ({}, {"model": "b"}):
            async with request(server.port, "POST", "/v1/completions", {"prompt": "x", **asked}) as response:
                names.append((await json_of(response))["model"])
    assert names == ["a", "b"]


async def test_ready_needs_an_engine_whose_loop_turns() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with request(server.port, "GET", "/ready") as response:
            assert response.status == 200
        engine.heartbeat_s = 100.0
        async with request(server.port, "GET", "/ready") as response:
            assert response.status == 503


@pytest.mark.parametrize("path", ["/health", "/ready", "/ping"])
async def test_only_a_server_that_takes_requests_is_healthy(path: str) -> None:
    """Manifests written for vLLM probe /health for readiness: at 200 before the model was there, requests came to get a 503."""
    async with live_server(ScriptedEngine(), ready=False) as server:
        assert await status_of(server, path) == 503
    async with live_server(ScriptedEngine()) as server:
        assert await status_of(server, path) == 200
        server.service.lifecycle.drain()
        assert await status_of(server, path) == 503
        server.service.lifecycle.die()
        assert await status_of(server, path) == 503
        assert await status_of(server, "/live") == 200


async def status_of(server: LiveServer, path: str, method: str = "GET", **headers: str) -> int:
    async with request(server.port, method, path, headers=headers) as response:
        return response.status


async def test_a_process_is_alive_before_it_has_a_model() -> None:
    async with live_server(ScriptedEngine(), ready=False) as server:
        assert await status_of(server, "/live") == 200
        assert await status_of(server, "/live", "HEAD") == 200


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/scripted", "/metrics", "/load", "/version", "/openapi.json", "/"])
async def test_a_path_that_answers_get_answers_head_with_the_same_head(path: str) -> None:
    async with live_server(ScriptedEngine()) as server:
        async with request(server.port, "GET", path) as response:
            status, headers = response.status, response.headers
        async with request(server.port, "HEAD", path) as response:
            assert (response.status, response.headers.keys()) == (status, headers.keys())
            assert response.headers["content-type"] == headers["content-type"]
            assert await response.received_after(0.05) == b""
        assert await status_of(server, "/v1/completions", "HEAD") == 405
        assert await status_of(server, "/nowhere", "HEAD") == 404


@pytest.mark.parametrize(
    ("path", "right"),
    [("/chat/completions", "/v1/chat/completions"), ("/v1/v1/completions", "/v1/completions"), ("/responses", "/v1/responses")],
)
async def test_a_path_with_v1_missing_or_doubled_is_told_the_right_one(path: str, right: str) -> None:
    async with live_server(ScriptedEngine()) as server:
        async with request(server.port, "POST", path, {"prompt": "a"}) as response:
            assert response.status == 404
            assert right in json.loads(await response.body())["error"]["message"]


async def test_sagemaker_invokes_chats_and_completions_at_one_path() -> None:
    chat = {"messages": [{"role": "user", "content": "x"}]}
    async with live_server(ScriptedEngine(reply=text_reply("fine"))) as server:
        async with request(server.port, "POST", "/invocations", chat) as response:
            assert (await json_of(response))["choices"][0]["message"]["content"] == "fine"
        async with request(server.port, "POST", "/invocations", {"prompt": "x"}) as response:
            assert (await json_of(response))["choices"][0]["text"] == "fine"
        async with request(server.port, "POST", "/invocations", {**chat, "stream": True}) as response:
            assert (await response.body()).endswith(b"data: [DONE]\n\n")
        async with request(server.port, "POST", "/invocations", {"input": "x"}) as response:
            assert response.status == 400


async def test_what_vllm_sends_as_null_is_null_and_not_absent() -> None:
    """Clients written for vLLM read these fields without asking whether they are there."""
    chat = {"messages": [{"role": "user", "content": "x"}]}
    unused = dict.fromkeys(("service_tier", "system_fingerprint", "kv_transfer_params"))
    async with live_server(ScriptedEngine(reply=text_reply("fine"))) as server:
        async with request(server.port, "POST", "/v1/completions", {"prompt": "x"}) as response:
            completion = await json_of(response)
        async with request(server.port, "POST", "/v1/chat/completions", chat) as response:
            answer = await json_of(response)
    assert completion.items() >= unused.items()
    assert completion["choices"][0].items() >= dict.fromkeys(("prompt_logprobs", "token_ids", "prompt_token_ids")).items()
    assert answer.items() >= {**unused, "prompt_logprobs": None, "prompt_token_ids": None}.items()
    assert answer["choices"][0].items() >= {"token_ids": None, "stop_reason": None, "logprobs": None}.items()


async def test_sagemaker_pings_by_get_and_by_post() -> None:
    async with live_server(ScriptedEngine(), api_keys=["key"]) as server:
        assert [await status_of(server, "/ping", method) for method in ("GET", "POST", "HEAD")] == [200, 200, 200]


@pytest.mark.parametrize("path", ["/live", "/health", "/ping", "/version", "/load", "/openapi.json"])
async def test_small_endpoints_answer(path: str) -> None:
    async with live_server(ScriptedEngine()) as server, request(server.port, "GET", path) as response:
        assert response.status == 200


async def test_version_and_load() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with request(server.port, "GET", "/version") as response:
            assert (await json_of(response))["version"] == streamserve.__version__
        async with request(server.port, "POST", "/v1/completions", {"prompt": "a", "stream": True}):
            async with request(server.port, "GET", "/load") as response:
                load = await json_of(response)
    assert (load["server_load"], load["num_requests_running"], load["phase"]) == (1, 1, "ready")


async def test_tokenize_and_detokenize_are_inverse() -> None:
    async with live_server(ScriptedEngine()) as server:
        async with request(server.port, "POST", "/tokenize", {"prompt": "hé", "return_token_strs": True}) as response:
            tokens = await json_of(response)
        async with request(server.port, "POST", "/detokenize", {"tokens": tokens["tokens"], "zork": 1}) as response:
            assert "zork" in response.headers["warning"]
            text = await json_of(response)
        chat = {"messages": [{"role": "user", "content": "x"}]}
        async with request(server.port, "POST", "/tokenize", chat) as response:
            rendered = await json_of(response)
    # As vLLM: entries of the vocabulary, which of a byte-level one are not its text.
    assert tokens == {"count": 3, "max_model_len": 4096, "tokens": [104, 195, 169], "token_strs": ["h", "Ã", "©"]}
    assert rendered["token_strs"] is None
    assert text == {"prompt": "hé"}
    assert bytes(rendered["tokens"]) == b"<user>x\n<assistant>"


async def test_metrics_count_requests_under_vllms_names() -> None:
    engine = ScriptedEngine(reply=text_reply("abc"))
    async with live_server(engine) as server:
        for body in ({"prompt": "ab", "stream": True}, {"prompt": "ab", "n": 2}, {"prompt": 5}):
            async with request(server.port, "POST", "/v1/completions", body) as response:
                await response.body()
        async with request(server.port, "GET", "/metrics") as response:
            assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
            page = (await response.body()).decode()
    samples = {
        (
            sample.name,
            sample.labels.get("finished_reason", sample.labels.get("reason", sample.labels.get("le", ""))),
        ): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert samples["vllm:request_success_total", "stop"] == 3
    assert samples["vllm:time_to_first_token_seconds_count", ""] == 2
    assert samples["vllm:request_generation_tokens_sum", ""] == 12
    assert samples["vllm:request_prompt_tokens_bucket", "2.0"] == 2
    assert samples["vllm:inter_token_latency_seconds_count", ""] == 3 + 2 * 3
    assert samples["streamserve:rejected_total", "invalid"] == 1
    assert samples["vllm:num_requests_running", ""] == 0


@pytest.mark.parametrize("path", ["/health", "/live"])
async def test_load_balancers_may_ask_for_the_head_alone(path: str) -> None:
    async with live_server(ScriptedEngine()) as server:
        async with request(server.port, "HEAD", path) as response:
            assert (response.status, response.headers["content-length"]) == (200, "0")


async def test_browsers_of_allowed_origins_may_read_answers_and_errors() -> None:
    async with live_server(ScriptedEngine(), api_keys=["one"], cors=CorsConfig(origins=("*",))) as server:
        headers = {"Origin": "http://page.test"}
        async with request(server.port, "GET", "/v1/models", headers=headers) as response:
            assert response.status == 401
            assert response.headers["access-control-allow-origin"] == "*"
        preflight = {**headers, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        async with request(server.port, "OPTIONS", "/v1/completions", headers=preflight) as response:
            assert response.status == 204
            assert "POST" in response.headers["access-control-allow-methods"]


@pytest.mark.parametrize("path", ["/v1/models", "/llm/v1/models"])
async def test_a_proxy_may_strip_its_path_or_not(path: str) -> None:
    async with live_server(ScriptedEngine(), root_path="/llm", api_keys=["one"]) as server:
        for headers, status in (({"Authorization": "Bearer one"}, 200), ({}, 401)):
            async with request(server.port, "GET", path, headers=headers) as response:
                assert response.status == status


async def test_a_refused_preflight_is_an_error_like_any_other() -> None:
    cors = CorsConfig(origins=("https://good.example",))
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    async with live_server(ScriptedEngine(), cors=cors) as server:
        async with request(server.port, "OPTIONS", "/v1/completions", headers=headers) as response:
            assert (response.status, response.headers["content-type"]) == (400, "application/json")
            assert json.loads(await response.body())["error"]["code"] == "cors_refused"
        async with request(
            server.port, "OPTIONS", "/v1/completions", headers={**headers, "Origin": cors.origins[0]}
        ) as response:
            assert response.status == 204

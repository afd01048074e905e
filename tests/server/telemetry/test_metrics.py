"""Every name on /metrics counts something real."""

from __future__ import annotations

import re
from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
from prometheus_client.parser import text_string_to_metric_families
from websockets.exceptions import InvalidStatus

from streamserve.errors import QueueFull
from streamserve.server.telemetry.metrics import Metrics
from streamserve.types import EngineSnapshot, EngineStats, Tally, TokenDelta
from tests.server.ws.session import session
from tests.support.live_server import LiveServer, live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tiny_server import tiny_server

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).resolve().parents[3]
INFO = ScriptedEngine().info
COMPLETION = {"prompt": "say", "stream": True, "max_tokens": 4000}
BUFFER = 4096
TIMES = {"queue": 0.5, "prefill": 0.5, "decode": 1.0, "inference": 1.5}


def parse(page: bytes) -> dict[str, float]:
    """Values by name, with the labels that tell samples of one name apart."""
    samples = {}
    for family in text_string_to_metric_families(page.decode()):
        assert family.documentation, family.name
        for sample in family.samples:
            own = {name: value for name, value in sample.labels.items() if name not in ("model_name", "engine")}
            samples[sample.name + "".join(f"{{{name}={value}}}" for name, value in own.items())] = sample.value
    return samples


async def scrape(port: int) -> dict[str, float]:
    async with request(port, "GET", "/metrics") as response:
        return parse(await response.body())


async def until(server: LiveServer, name: str, least: float) -> None:
    with anyio.fail_after(10):
        while (await scrape(server.port))[name] < least:
            await anyio.lowlevel.checkpoint()


async def post(port: int, body: object, path: str = "/v1/completions") -> int:
    async with request(port, "POST", path, body) as response:
        await response.body()
        return response.status


async def test_a_requests_time_is_split_into_queue_prefill_and_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("streamserve.server.telemetry.accounting.monotonic", lambda: now)
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with request(server.port, "POST", "/v1/completions", {**COMPLETION, "n": 2}) as response:
            first, second = await engine.sequences(2)
            now = 101.0
            engine.generate(first, TokenDelta([ord("a")], queue_s=0.5))
            await response.chunk()
            now = 102.0
            engine.generate(first, TokenDelta([ord("b"), ord("c")]))
            await response.chunk()
            for sequence in (first, second):
                engine.finish(sequence, "length")
            await response.body()
        await server.service.delivery.active_requests.wait_idle()
        samples = await scrape(server.port)
    for name, seconds in TIMES.items():
        assert samples[f"vllm:request_{name}_time_seconds_sum"] == pytest.approx(seconds), name
    assert samples["vllm:time_to_first_token_seconds_sum"] == pytest.approx(1.0)
    assert samples["vllm:e2e_request_latency_seconds_sum"] == pytest.approx(2.0)
    assert samples["vllm:inter_token_latency_seconds_sum"] == samples["vllm:time_per_output_token_seconds_sum"]
    assert samples["vllm:inter_token_latency_seconds_sum"] == pytest.approx(1.0)
    assert samples["vllm:request_time_per_output_token_seconds_sum"] == pytest.approx(0.5)
    assert samples["vllm:request_generation_tokens_sum"] == samples["vllm:request_max_num_generation_tokens_sum"] == 3
    assert samples["vllm:request_params_n_sum"] == 2
    assert samples["vllm:request_params_max_tokens_sum"] == 4000
    assert samples["vllm:request_success_total{finished_reason=length}"] == 2


async def test_choices_that_never_end_count_by_what_became_of_them() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with request(server.port, "POST", "/v1/completions", {**COMPLETION, "n": 2}) as response:
            [sequence, _] = await engine.sequences(2)
            engine.finish(sequence)
            await response.chunk()
            await response.leave()
        async with request(server.port, "POST", "/v1/completions", COMPLETION) as response:
            engine.fail((await engine.sequences(3))[2], "stream_failed", "broken")
            await response.body()
        await server.service.delivery.active_requests.wait_idle()
        samples = await scrape(server.port)
    ended = {
        reason: samples[f"vllm:request_success_total{{finished_reason={reason}}}"] for reason in ("stop", "abort", "error")
    }
    assert ended == {"stop": 1, "abort": 1, "error": 1}
    assert samples["streamserve:stream_disconnects_total{phase=streaming}"] == 1


async def test_refusals_count_by_reason_over_both_transports() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, max_body_bytes=1000) as server:
        assert await post(server.port, {"prompt": 5}) == 400
        assert await post(server.port, {"prompt": "x" * 2000}) == 413
        assert await post(server.port, {}, "/v1/nothing") == 404
        engine.refuse = QueueFull("full")
        assert await post(server.port, COMPLETION) == 429
        async with session(server.port) as socket:
            await socket.chat("a")
            assert (await socket.ending("a"))["error"]["code"] == "queue_full"
            await socket.send({"type": "nonsense"})
            await socket.receive()
        server.service.lifecycle.die()
        assert await post(server.port, COMPLETION) == 503
        with pytest.raises(InvalidStatus):
            async with session(server.port):
                raise AssertionError("opened")
        samples = await scrape(server.port)
    counts = {name: samples[f"streamserve:rejected_total{{reason={name}}}"] for name in ("invalid", "too_large", "not_found")}
    assert counts == {"invalid": 2, "too_large": 1, "not_found": 1}
    assert samples["streamserve:rejected_total{reason=queue_full}"] == 2
    assert samples["streamserve:rejected_total{reason=unavailable}"] == 2


async def test_vllms_dashboards_find_why_requests_wait_or_are_refused_and_the_caches_shape() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        engine.refuse = QueueFull("full")
        assert await post(server.port, COMPLETION) == 429
        samples = await scrape(server.port)
    assert samples["vllm:admission_rejections_total{reason=max_num_queued_reqs}"] == 1
    assert samples["vllm:num_requests_waiting_by_reason{reason=capacity}"] == samples["vllm:num_requests_waiting"]
    assert samples["vllm:num_requests_waiting_by_reason{reason=deferred}"] == 0
    info = engine.info
    shape = f"{{block_size={info.block_size}}}{{cache_dtype={info.kv_cache_dtype}}}{{num_gpu_blocks={info.num_blocks}}}"
    assert samples[f"vllm:cache_config_info{shape}"] == 1


async def test_wrong_keys_count_over_both_transports() -> None:
    async with live_server(ScriptedEngine(), api_keys=["key"]) as server:
        assert await post(server.port, COMPLETION) == 401
        with pytest.raises(InvalidStatus):
            async with session(server.port):
                raise AssertionError("opened")
        assert (await scrape(server.port))["streamserve:rejected_total{reason=auth}"] == 2


async def test_sockets_and_their_streams_show_while_they_last() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        async with session(server.port) as socket:
            await socket.chat("a")
            [sequence] = await engine.sequences()
            during = await scrape(server.port)
            engine.finish(sequence)
            await socket.ending("a")
            await until(server, "vllm:e2e_request_latency_seconds_count", 1)
        await server.service.sockets.wait_idle()
        after = await scrape(server.port)
    names = ("streamserve:ws_connections", "streamserve:ws_streams")
    assert [during[name] for name in names] == [1, 1]
    assert [after[name] for name in names] == [0, 0]


async def test_bytes_that_wait_for_a_client_show_until_it_is_closed_as_slow() -> None:
    engine = ScriptedEngine()
    async with live_server(engine, send_buffer=BUFFER, send_timeout_s=1.5, keepalive_s=0.1) as server:
        async with request(server.port, "POST", "/v1/completions", COMPLETION, receive_buffer=BUFFER):
            [sequence] = await engine.sequences()
            for _ in range(400):
                engine.generate(sequence, TokenDelta([ord("x")] * 200))
                await anyio.lowlevel.checkpoint()
            await until(server, "streamserve:client_buffer_bytes", 10_000)
            await engine.aborts()
            samples = await scrape(server.port)
    assert samples["streamserve:slow_client_closes_total"] == 1
    assert samples["streamserve:stream_disconnects_total{phase=blocked}"] == 1


async def test_a_real_engine_moves_its_gauges_and_totals(tmp_path: Path) -> None:
    prompt = list(range(97, 97 + 26)) + [32] * 22
    async with tiny_server(tmp_path) as server:
        for _ in range(2):
            assert await post(server.port, {"prompt": prompt, "max_tokens": 8, "ignore_eos": True, "temperature": 0}) == 200
        body = {"prompt": prompt, "max_tokens": 60, "ignore_eos": True, "stream": True, "min_tokens": 60}
        async with request(server.port, "POST", "/v1/completions", body) as response:
            await response.chunk()
            during = await scrape(server.port)
            await response.leave()
        with anyio.fail_after(10):
            while (after := await scrape(server.port))["streamserve:abort_latency_seconds_count"] == 0:
                await anyio.lowlevel.checkpoint()
    assert during["vllm:num_requests_running"] == 1
    assert 0 < during["vllm:kv_cache_usage_perc"] == during["vllm:gpu_cache_usage_perc"] < 1
    assert after["vllm:num_requests_running"] == after["vllm:num_requests_waiting"] == 0
    assert after["vllm:prefix_cache_queries_total"] == after["vllm:prompt_tokens_total"] == 3 * len(prompt)
    assert after["vllm:prefix_cache_hits_total"] >= 2 * 32
    assert after["vllm:generation_tokens_total"] >= 16 + 1
    assert after["vllm:request_queue_time_seconds_count"] == 3
    assert after["vllm:request_queue_time_seconds_sum"] > 0
    assert after["streamserve:steps_total"] >= 16
    assert after["vllm:iteration_tokens_total_count"] == after["streamserve:steps_total"]
    assert after["vllm:iteration_tokens_total_sum"] > after["vllm:generation_tokens_total"]
    assert after["vllm:request_num_preemptions_count"] == 3


async def test_the_engines_totals_appear_under_their_names() -> None:
    stats = EngineStats(
        num_requests_waiting=3,
        num_requests_paused=4,
        num_preemptions=5,
        divided_steps=2,
        wasted_tokens=6,
        tokens_wasted_after_disconnect=7,
        num_aborts=8,
        abort_latency_s=0.25,
        heartbeat_s=9.0,
        step_tokens=Tally(bounds=(1, 8), counts=[2, 1, 0], total=7),
    )
    samples = parse(Metrics("m").page([EngineSnapshot(INFO, stats)]))
    assert samples["vllm:num_requests_waiting"] == 3
    buckets = [samples[f"vllm:iteration_tokens_total_bucket{{le={bound}}}"] for bound in ("1.0", "8.0", "+Inf")]
    assert (buckets, samples["vllm:iteration_tokens_total_sum"]) == ([2, 3, 3], 7)
    assert samples["streamserve:num_requests_paused"] == 4
    assert samples["vllm:num_preemptions_total"] == 5
    assert samples["streamserve:divided_steps_total"] == 2
    assert samples["streamserve:wasted_tokens_total"] == 6
    assert samples["streamserve:tokens_wasted_after_disconnect_total"] == 7
    assert samples["streamserve:abort_latency_seconds_count"] == 8
    assert samples["streamserve:abort_latency_seconds_sum"] == 0.25
    assert samples["streamserve:engine_heartbeat_seconds"] == 9


def names(page: bytes) -> set[str]:
    return {sample.name for family in text_string_to_metric_families(page.decode()) for sample in family.samples}


def test_each_engine_has_samples_of_its_own_and_requests_are_counted_together() -> None:
    engines = [
        EngineSnapshot(INFO, EngineStats(steps=3)),
        EngineSnapshot(INFO, None),
        EngineSnapshot(INFO, EngineStats(steps=4)),
    ]
    metrics = Metrics("m", engines=3)
    metrics.give_up(2, 2)
    page = metrics.page(engines).decode()
    assert re.findall(r'streamserve:steps_total{engine="(\d)",model_name="m"} (\S+)', page) == [("0", "3.0"), ("2", "4.0")]
    assert re.findall(r'streamserve:engine_up{engine="(\d)",model_name="m"} (\S+)', page) == [
        ("0", "1.0"), ("1", "0.0"), ("2", "1.0"),
    ]  # fmt: skip
    assert 'streamserve:requests_given_up_total{engine="all",model_name="m"} 1.0' in page
    assert [metrics.num_engine_ends_explained(number) for number in range(3)] == [0, 0, 2]


async def test_the_dashboard_asks_for_what_there_is() -> None:
    dashboard = (ROOT / "docs" / "grafana" / "streamserve.json").read_text()
    queried = set(re.findall(r"(?:vllm|streamserve):\w+", dashboard))
    assert len(queried) > 25
    assert queried <= names(Metrics("m").page([EngineSnapshot(INFO, EngineStats())]))


async def test_the_documentation_names_what_there_is() -> None:
    text = (ROOT / "docs" / "METRICS.md").read_text()
    documented = set(re.findall(r"^\| `((?:vllm|streamserve):\w+)", text, re.MULTILINE))
    page = Metrics("m").page([EngineSnapshot(INFO, EngineStats())])
    families = {family.name for family in text_string_to_metric_families(page.decode())}
    assert documented == families

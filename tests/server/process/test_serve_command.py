"""`streamserve serve` from the outside: its command line, its life, its end."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from streamserve.cli import run
from tests.support.command_line import serve_options_of as options
from tests.support.serve_process import ServeProcess, engine_of, is_running, running, serve_process
from tests.support.tiny_model import TinyLlama

SMALL = ("--model", "demo", "--kv-cache-memory", "64M", "--max-model-len", "1024", "--enforce-eager")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["name a model", "--model"]),
        (["demo", "--model", "other"], ["two models"]),
        (["demo", "--zork", "1"], ["--zork"]),
        (["demo", "--port", "many"], ["--port", "many"]),
        (["demo", "--port", "99999"], ["--port 99999", "65535"]),
        (["demo", "--calculate-kv-scales"], ["--calculate-kv-scales", "the checkpoint's"]),
        (["demo", "--enable_lora"], ["--enable-lora", "without adapters"]),
        (["demo", "-tp", "0"], ["--tensor-parallel-size 0"]),
        (["demo", "-pp", "2"], ["--pipeline-parallel-size 2", "--tensor-parallel-size"]),
        (["demo", "-dp", "0"], ["--data-parallel-size 0"]),
        (["demo", "-dp", "2", "-dpl", "1"], ["--data-parallel-size-local 1", "load balancer"]),
        (["demo", "-dp", "2", "--data-parallel-external-lb"], ["--data-parallel-external-lb", "one endpoint"]),
        (["demo", "-dp", "2", "-ep"], ["--enable-expert-parallel", "--data-parallel-size 2", "whole model"]),
        (["demo", "-tp", "2", "--distributed-executor-backend", "uni"], ["uni", "--tensor-parallel-size", "mp or ray"]),
        (["demo", "--dtype", "int3"], ["--dtype", "bfloat16"]),
        (["demo", "--block-size", "7"], ["--block-size", "16"]),
        (["demo", "--max-model-len", "4.5"], ["--max-model-len"]),
        (["demo", "--max-model-len", "nank"], ["--max-model-len"]),
        (["demo", "--max-model-len", "infk"], ["--max-model-len"]),
        (["demo", "--max-num-seqs", "0"], ["--max-num-seqs 0"]),
        (["demo", "--keepalive", "0"], ["--keepalive"]),
        (["demo", "--shutdown-timeout", "-1"], ["--shutdown-timeout"]),
        (["demo", "--api-key", ""], ["--api-key"]),
        (["demo", "--chat-template", "nowhere.jinja"], ["--chat-template", "nowhere.jinja"]),
        (["demo", "--allowed-origins", "x"], ["--allowed-origins", "JSON"]),
        (["demo", "--override-generation-config", "[1]"], ["--override-generation-config"]),
        (["demo", "--generation-config", "/nowhere"], ["--generation-config /nowhere"]),
        (["demo", "--ssl-certfile", "/nowhere.pem"], ["TLS"]),
        (["demo", "--ssl-keyfile", "/nowhere.pem"], ["--ssl-keyfile", "--ssl-certfile"]),
        (["demo", "--ssl-cert-reqs", "2"], ["--ssl-cert-reqs", "--ssl-certfile"]),
    ],
)
def test_a_wrong_command_line_is_one_line_and_exit_status_2(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["serve", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.strip().splitlines()) == 1
    assert printed.err.startswith("error: ")
    assert all(word in printed.err for word in words), printed.err


def test_ray_is_refused_by_name_where_it_is_not_installed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused = ["serve", "demo", "-tp", "2", "--distributed-executor-backend", "ray"]
    monkeypatch.setitem(sys.modules, "ray", None)
    assert run(refused) == 2
    assert "pip install 'streamserve[ray]'" in capsys.readouterr().err
    monkeypatch.delitem(sys.modules, "ray")
    (tmp_path / "ray").mkdir()
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(folder for folder in sys.path if not (Path(folder) / "ray").is_dir())])
    assert run(refused) == 2
    assert "pip install 'streamserve[ray]'" in capsys.readouterr().err


def test_a_port_in_use_is_one_line_that_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for arguments in ([], ["--api-server-count", "2"]):
            assert run(["serve", "demo", "--host", "127.0.0.1", "--port", str(port), *arguments]) == 2
            error = capsys.readouterr().err
            assert len(error.strip().splitlines()) == 1
            assert f"port {port}" in error
            assert "--port" in error


def test_vllms_command_line_means_what_it_means_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STREAMSERVE_API_KEY", raising=False)
    parsed = options(
        "facebook/opt-125m", "--served_model_name", "a", "b", "--max-model-len", "25.6k", "--dtype=half", "-tp", "1",
        "--trust-remote-code", "--gpu-memory-utilization", "0.5", "--seed", "3", "--block-size", "32", "--max-num-seqs", "8",
        "--max-num-batched-tokens", "1K", "--no-enable-prefix-caching", "--no-async-scheduling",
        "--kv-cache-memory-bytes", "2G",
        "--api-key", "k1", "--api-key", "k2", "--disable-log-requests", "--uvicorn-log-level", "warning",
    )  # fmt: skip
    engine = parsed.engine
    assert (engine.model, engine.dtype, engine.max_model_len, engine.block_size) == ("facebook/opt-125m", "half", 25600, 32)
    assert (engine.gpu_memory_utilization, engine.max_num_seqs, engine.max_num_batched_tokens) == (0.5, 8, 1024)
    assert (engine.trust_remote_code, engine.enable_prefix_caching, engine.overlap) == (True, False, False)
    assert (engine.kv_cache_memory, parsed.server.seed) == (2 * 1024**3, 3)
    assert (parsed.server.model_names, parsed.server.api_keys) == (["a", "b"], ["k1", "k2"])
    assert (parsed.listen.port, parsed.listen.log_level, parsed.workers) == (8000, "warning", 1)


def test_replicas_have_an_api_process_each_unless_told_otherwise() -> None:
    assert options("demo", "-dp", "3").workers == 3
    assert options("demo", "-dp", "3", "-dpl", "3", "-asc", "1").workers == 1
    assert options("demo", "-dp", "100").workers == 64


def test_the_model_may_come_as_a_flag_and_the_key_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STREAMSERVE_API_KEY", "hidden")
    parsed = options("--model", "demo")
    assert (parsed.engine.model, parsed.server.model_names, parsed.server.api_keys) == ("demo", ["demo"], ["hidden"])
    assert options("demo", "--api-key", "told").server.api_keys == ["told"]


def test_a_key_set_for_vllm_is_asked_for_here_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """A deployment moved from vLLM with its environment stood open."""
    monkeypatch.delenv("STREAMSERVE_API_KEY", raising=False)
    monkeypatch.setenv("VLLM_API_KEY", "theirs")
    assert options("demo").server.api_keys == ["theirs"]
    monkeypatch.setenv("STREAMSERVE_API_KEY", "ours")
    assert options("demo").server.api_keys == ["ours"]


def test_sampling_defaults_come_from_model_flag_or_nowhere() -> None:
    assert options("demo").uses_model_defaults
    assert not options("demo", "--generation-config", "vllm").uses_model_defaults
    parsed = options("demo", "--override-generation-config", '{"temperature": 0.5, "max_new_tokens": 7}')
    assert parsed.sampling_overrides == {"temperature": 0.5, "max_tokens": 7}


def complete(base_url: str, **fields: Any) -> str:
    answer = httpx.post(f"{base_url}/v1/completions", json={"prompt": "The capital of France is", **fields}, timeout=60)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def test_a_signal_while_the_server_is_still_imported_leaves_no_engine() -> None:
    with serve_process("demo") as server:
        children = server.wait_for_children()
        server.signal(signal.SIGTERM)
        server.wait()
        assert not any(map(is_running, children))


def test_an_unknown_model_leaves_with_one_line_and_status_1() -> None:
    with serve_process("--model", "/nowhere/at/all") as server:
        assert server.wait() == 1
        assert "error: /nowhere/at/all: no such file or folder" in server.log
        assert "Traceback" not in server.log


@pytest.fixture(scope="module")
def demo() -> Any:
    with serve_process(*SMALL, "--served-model-name", "demo", "smol", "--shutdown-timeout", "20") as server:
        early = tuple(httpx.get(f"{server.base_url}{path}").status_code for path in ("/live", "/health", "/ready"))
        server.wait_ready()
        yield server, early


def test_the_port_answers_before_the_model_is_there(demo: tuple[ServeProcess, tuple[int, ...]]) -> None:
    server, early = demo
    assert early == (200, 503, 503)
    assert [httpx.get(f"{server.base_url}{path}").status_code for path in ("/live", "/health", "/ready")] == [200, 200, 200]


def test_a_real_model_answers(demo: tuple[ServeProcess, Any]) -> None:
    server, _ = demo
    text = complete(server.base_url, max_tokens=8, temperature=0)
    assert text.startswith(" Paris")
    with httpx.stream(
        "POST",
        f"{server.base_url}/v1/completions",
        json={"model": "smol", "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0, "stream": True},
        timeout=60,
    ) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    assert "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1]) == text
    assert len(lines) == 9


def test_a_schema_holds_over_http(demo: tuple[ServeProcess, Any]) -> None:
    server, _ = demo
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    text = complete(
        server.base_url, max_tokens=40, seed=1, response_format={"type": "json_schema", "json_schema": {"schema": schema}}
    )
    assert set(json.loads(text)) == {"n"}


def test_the_latency_of_an_abort_is_measured_from_the_client_to_the_engine(demo: tuple[ServeProcess, Any]) -> None:
    server, _ = demo
    started_at = monotonic()
    count, total_s = abort_latency(server.base_url)
    body = {"prompt": "Once upon a time", "max_tokens": 900, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{server.base_url}/v1/completions", json=body, timeout=60) as response:
        next(response.iter_lines())
    while abort_latency(server.base_url)[0] == count:
        assert monotonic() - started_at < 30, "the abort was never counted"
    assert 0 < abort_latency(server.base_url)[1] - total_s < monotonic() - started_at


def abort_latency(base_url: str) -> tuple[float, float]:
    """Aborts so far and the seconds they took in all, as /metrics reports them."""
    page = httpx.get(f"{base_url}/metrics").text
    [count], [total_s] = (
        re.findall(rf"^streamserve:abort_latency_seconds_{name}{{.*}} (\S+)$", page, re.MULTILINE) for name in ("count", "sum")
    )
    return float(count), float(total_s)


def test_prompts_and_keys_are_never_logged(demo: tuple[ServeProcess, Any]) -> None:
    server, _ = demo
    complete(server.base_url, max_tokens=2)
    httpx.post(
        f"{server.base_url}/v1/completions", json={"prompt": "xyzzy", "n": -1}, headers={"Authorization": "Bearer plugh"}
    )
    assert '"POST /v1/completions HTTP/1.1" 200' in server.log
    assert not {"capital", "xyzzy", "plugh"} & set(server.log.replace('"', " ").split())


def test_a_signal_drains_finishes_the_stream_and_leaves_nothing(demo: tuple[ServeProcess, Any]) -> None:
    server, _ = demo
    base_url, children = server.base_url, server.children
    body = {"prompt": "Once upon a time", "max_tokens": 60, "stream": True, "ignore_eos": True}
    with httpx.stream("POST", f"{base_url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        server.signal(signal.SIGTERM)
        rest = [line for line in lines if line]
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert server.wait() == 0
    assert not any(map(is_running, children))
    assert "Stopping: 1 request has" in server.log
    assert not re.search("WARNING|ERROR|engine process ended|lost the engine", server.log), server.log
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{base_url}/health")


def test_workers_share_the_port_outlive_an_engine_and_die_with_the_last() -> None:
    with serve_process(*SMALL, "--api-server-count", "2", "--max-engine-restarts", "1") as server:
        server.wait_ready()
        base_url, children = server.base_url, server.children
        assert len(children) == 2
        # Every connection may meet either worker: between them they must know each other's requests and counts.
        for _ in range(6):
            complete(base_url, max_tokens=1)
        assert (
            'vllm:request_success_total{engine="0",finished_reason="length",model_name="demo"} 6.0'
            in httpx.get(f"{base_url}/metrics").text
        )
        made = [make_response(base_url) for _ in range(3)]
        assert {httpx.get(f"{base_url}/v1/responses/{id}").status_code for id in made * 4} == {200}
        assert [cancel_from_anywhere(base_url, f"job-{number}") for number in range(6)] == ["abort"] * 6
        endings = endings_when_the_engine_is_killed(server)
        assert all('"finish_reason":"length"' in last and done == "data: [DONE]" for last, done in endings)
        assert "starting it again (1 of 1 times in ten minutes)" in server.log
        restarts = 'streamserve:engine_restarts_total{engine="0",model_name="demo"} 1.0'
        assert restarts in httpx.get(f"{base_url}/metrics").text
        assert complete(base_url, max_tokens=1)
        assert_a_killed_worker_is_replaced(server)
        children = server.children
        endings = endings_when_the_engine_is_killed(server)
        assert all('"engine_dead"' in error and done == "data: [DONE]" for error, done in endings)
        assert server.wait() == 1
        assert "error: the engine process ended" in server.log
        assert not any(map(is_running, [*children, *server.children]))


def make_response(base_url: str) -> str:
    return str(httpx.post(f"{base_url}/v1/responses", json={"input": "hi", "max_output_tokens": 1}, timeout=60).json()["id"])


def endings_when_the_engine_is_killed(server: ServeProcess) -> list[list[str]]:
    """The last two events of each of four streams under which the engine is killed."""
    with ThreadPoolExecutor() as threads:
        streams = [threads.submit(read_stream, server.base_url, max_tokens=120) for _ in range(4)]
        wait_running(server.base_url, 4)
        os.kill(engine_of(server.children), signal.SIGKILL)
        return [stream.result(timeout=120)[-2:] for stream in streams]


def assert_a_killed_worker_is_replaced(server: ServeProcess) -> None:
    """Kills one of two API workers under streams: those of the other one end well, and soon there are two again."""
    before = server.children
    with ThreadPoolExecutor() as threads:
        streams = [threads.submit(read_stream, server.base_url, max_tokens=60) for _ in range(6)]
        wait_running(server.base_url, 6)
        worker = next(pid for pid in before if pid != engine_of(before))
        os.kill(worker, signal.SIGKILL)
        server.wait_for_log("API worker 1 ended with status -9; starting it again")
        errors = [stream.exception(timeout=60) for stream in streams]
    assert all(error is None or isinstance(error, httpx.TransportError) for error in errors)
    assert None in errors, "the other worker's streams go on"
    wait_running(server.base_url, 0)
    server.wait_for(lambda: running(server.children, "worker_process") not in ([], [worker]))
    assert engine_of(server.children) == engine_of(before)


def read_stream(base_url: str, **fields: Any) -> list[str]:
    body = {"prompt": "Once upon a time", "max_tokens": 900, "stream": True, "ignore_eos": True, **fields}
    with httpx.stream("POST", f"{base_url}/v1/completions", json=body, timeout=60) as response:
        return [line for line in response.iter_lines() if line]


def wait_running(base_url: str, count: int) -> None:
    with httpx.Client(base_url=base_url) as client:
        while (running := client.get("/load").json()["num_requests_running"]) < count or (running and not count):
            continue


def cancel_from_anywhere(base_url: str, request_id: str) -> str:
    """Start a stream, cancel it over a connection of its own; how the stream finished."""
    body = {"prompt": "Once upon a time", "max_tokens": 900, "stream": True, "ignore_eos": True, "request_id": request_id}
    with httpx.stream("POST", f"{base_url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        assert httpx.post(f"{base_url}/v1/requests/{request_id}/cancel").status_code == 200
        last = [line for line in lines if line][-2]
    return str(json.loads(last.removeprefix("data: "))["choices"][0]["finish_reason"])


@pytest.mark.slow
def test_an_engine_that_hangs_is_replaced_and_a_signal_ends_a_server_whose_engine_hangs() -> None:
    with serve_process(*SMALL, "--engine-hang-timeout", "6", "--shutdown-timeout", "1") as server:
        server.wait_ready()
        with ThreadPoolExecutor() as threads:
            stream = threads.submit(read_stream, server.base_url, max_tokens=200)
            wait_running(server.base_url, 1)
            os.kill(engine_of(server.children), signal.SIGSTOP)
            server.wait_for_log("The engine process hangs: it has not answered for")
            last, done = stream.result(timeout=60)[-2:]
        assert '"finish_reason":"length"' in last
        assert done == "data: [DONE]"
        os.kill(engine_of(server.children), signal.SIGSTOP)
        server.signal(signal.SIGTERM)
        assert server.wait(30) == 0


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced_and_the_others_go_on() -> None:
    with serve_process(*SMALL, "--api-server-count", "2") as server:
        server.wait_ready()
        children = server.children
        worker = next(pid for pid in children if pid != engine_of(children))
        os.kill(worker, signal.SIGSTOP)
        server.wait_for_log("API worker 1 ended with status -9; starting it again")
        for _ in range(6):
            assert complete(server.base_url, max_tokens=1)
        assert engine_of(server.children) == engine_of(children)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.slow
def test_workers_are_replaced_one_after_another_and_no_stream_or_request_notices() -> None:
    with serve_process(*SMALL, "--api-server-count", "3") as server:
        server.wait_ready()
        base_url, before = server.base_url, server.children
        with ThreadPoolExecutor(16) as threads:
            streams = [threads.submit(read_stream, base_url, max_tokens=300) for _ in range(6)]
            wait_running(base_url, 6)
            for times in (1, 2):
                server.signal(signal.SIGHUP)
                requests = [threads.submit(complete_for, base_url, seconds=6) for _ in range(6)]
                assert all(request.result(timeout=120) > 1 for request in requests)
                server.wait_for(partial(has_replaced_workers, server, times))
            for stream in streams:
                *_, last, done = stream.result(timeout=120)
                assert '"finish_reason":"length"' in last
                assert done == "data: [DONE]"
        server.wait_for(lambda: len(server.children) == len(before) + 1)
        assert engine_of(server.children) == engine_of(before)
        assert not set(running(server.children, "worker_process")) & set(before)
        # The process that supervises serves nothing any more.
        os.kill(server.pid, signal.SIGSTOP)
        for _ in range(12):
            assert complete(base_url, max_tokens=1)
        os.kill(server.pid, signal.SIGCONT)
        page = httpx.get(f"{base_url}/metrics").text
        assert 'vllm:request_success_total{engine="0",finished_reason="length",model_name="demo"}' in page
        assert not re.search("WARNING|ERROR|ended with status", server.log), server.log
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


@pytest.mark.slow
def test_keys_change_on_sighup_in_every_worker_and_a_file_with_a_fault_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"

    def write(*names: str) -> None:
        path.write_text(json.dumps([{"name": name, "sha256": sha256(name.encode()).hexdigest()} for name in names]))

    def statuses(key: str) -> set[int]:
        """Of as many connections as meet every worker."""
        headers = {"Authorization": f"Bearer {key}"}
        return {httpx.get(f"{server.base_url}/v1/models", headers=headers).status_code for _ in range(24)}

    write("alice", "bob")
    arguments = ("--host", "127.0.0.1", "--api-keys-file", str(path), "--api-server-count", "2")
    with serve_process(*SMALL, *arguments) as server:
        server.wait_ready()
        assert [statuses(key) for key in ("alice", "bob", "carol")] == [{200}, {200}, {401}]
        write("bob", "carol")
        server.signal(signal.SIGHUP)
        server.wait_for(partial(has_replaced_workers, server, 1))
        assert [statuses(key) for key in ("alice", "bob", "carol")] == [{401}, {200}, {200}]
        path.write_text("- {name: alice}")
        server.signal(signal.SIGHUP)
        server.wait_for_log("Nothing is reloaded")
        assert [statuses(key) for key in ("bob", "carol")] == [{200}, {200}]
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def has_replaced_workers(server: ServeProcess, times: int) -> bool:
    return server.log.count("replaced the API workers") == times


def complete_for(base_url: str, *, seconds: float) -> int:
    """Completions one after another over one connection for as long, in which none may fail; how many."""
    count, until = 0, monotonic() + seconds
    with httpx.Client(base_url=base_url, timeout=60) as client:
        while monotonic() < until:
            body = {"prompt": "Paris is", "max_tokens": 2}
            assert client.post("/v1/completions", json=body).status_code == 200
            count += 1
    return count


def test_a_second_signal_ends_everything_at_once() -> None:
    with serve_process(*SMALL, "--api-server-count", "2", "--shutdown-timeout", "60") as server:
        server.wait_ready()
        base_url, children = server.base_url, server.children
        with ThreadPoolExecutor() as threads:
            streams = [threads.submit(read_stream, base_url) for _ in range(4)]
            wait_running(base_url, 4)
            server.signal(signal.SIGINT)
            server.wait_for_log("a second signal ends them now")
            assert "Stopping: 4 requests have" in server.log
            server.signal(signal.SIGINT)
            assert server.wait(10) == 128 + signal.SIGINT
            for stream in streams:
                with pytest.raises(httpx.RemoteProtocolError):
                    stream.result(timeout=10)
        assert not any(map(is_running, children))


def test_a_signal_while_loading_leaves_nothing() -> None:
    with serve_process(*SMALL) as server:
        server.wait_for_log("tokenizer")
        children = server.children
        assert children
        server.signal(signal.SIGTERM)
        assert server.wait(20) == 0
        assert "Traceback" not in server.log
        assert not any(map(is_running, children))


@pytest.mark.slow
def test_a_template_that_no_chat_can_use_is_named_at_the_start(tmp_path: Path) -> None:
    """Fine-tunes add tokens to tokenizer and template but not to the model."""
    words = ["a", "<unk>", *(f"w{number}" for number in range(14))]
    TinyLlama(tmp_path, vocab_size=len(words))
    tokenizer = Tokenizer(WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<|new|>"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "chat_template.jinja").write_text("<|new|>{{ messages[0].content }}")
    with serve_process("--model", str(tmp_path), "--kv-cache-memory", "4M", "--max-model-len", "64") as server:
        server.wait_ready()
        assert "warning: every chat will be refused: the chat template writes '<|new|>'" in server.log
        assert complete(server.base_url, prompt="a", max_tokens=2)

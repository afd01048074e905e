"""`--data-parallel-size 2` over HTTP: what clients see when an engine ends or hangs. A real server, with scripted engines."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from threading import Barrier

import anyio
import httpx
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from streamserve.engine.process.start import EngineStart
from streamserve.server.http.connections.listen import bind
from streamserve.server.process.main import Server
from streamserve.server.process.startup_log import StartupLog
from tests.support.command_line import serve_options_of
from tests.support.scripted import VOCAB_SIZE, continuation
from tests.support.serve_process import running, serve_process

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[3]
PROMPTS = [[number, 7, 11] for number in range(1, 7)]
NUM_TOKENS = 300


class TwoReplicas:
    """A running server with two replicas."""

    def __init__(self, client: httpx.AsyncClient, start: EngineStart) -> None:
        self.client = client
        self.pids = [process.pid for process in start.result().processes]

    def signal(self, replica: int, number: signal.Signals) -> None:
        pid = self.pids[replica]
        assert pid is not None
        os.kill(pid, number)

    async def texts(self, begun: anyio.Event) -> list[str]:
        """The texts of `PROMPTS`, streamed at the same time; sets `begun` once each has a part."""
        parts: list[list[str]] = [[] for _ in PROMPTS]
        async with anyio.create_task_group() as tasks:
            for place, prompt in enumerate(PROMPTS):
                tasks.start_soon(self._read, prompt, parts[place], lambda: all(parts) and begun.set())
        return [" ".join(part).strip() for part in parts]

    async def _read(self, prompt: list[int], parts: list[str], on_part: Callable[[], object]) -> None:
        body = {"model": "m", "prompt": prompt, "max_tokens": NUM_TOKENS, "ignore_eos": True, "stream": True}
        async with self.client.stream("POST", "/v1/completions", json=body) as answer:
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    [choice] = json.loads(line[6:])["choices"]
                    parts.append(choice["text"].strip())
                    on_part()
                    if choice["finish_reason"] is not None:
                        assert choice["finish_reason"] == "length"

    async def metrics(self, name: str) -> dict[str, float]:
        """A metric by engine."""
        page = (await self.client.get("/metrics")).text
        return {
            engine: float(value) for engine, value in re.findall(rf'^{name}{{engine="(\w+)".*}} (\S+)$', page, re.MULTILINE)
        }


@asynccontextmanager
async def two_replicas(folder: Path, *arguments: str) -> AsyncIterator[TwoReplicas]:
    config = json.loads((ROOT / "benchmarks/configs/Qwen3-0.6B/config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": VOCAB_SIZE, "eos_token_id": None}))
    names = {f"w{number}": number for number in range(VOCAB_SIZE)}
    Tokenizer(WordLevel(names, unk_token="w0")).save(str(folder / "tokenizer.json"))
    options = serve_options_of(
        "--model", str(folder), "--served-model-name", "m", "--load-format", "dummy", "-dp", "2", "--api-server-count", "1",
        "--port", "0", "--host", "127.0.0.1", "--max-num-seqs", "8", *arguments,
    )  # fmt: skip
    start = EngineStart(options.engine, executor="tests.support.scripted:steady", compile_constraint=None)
    listening = bind(options.listen)
    port = listening.getsockname()[1]
    server = Server(options, listening, start, StartupLog())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.run)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            with anyio.fail_after(20):
                while (await client.get("/ready")).status_code != 200:
                    await anyio.lowlevel.checkpoint()
            try:
                yield TwoReplicas(client, start)
            finally:
                # The server handles it, and ends as it does for a user.
                signal.raise_signal(signal.SIGTERM)


@pytest.fixture(autouse=True)
def engines_find_the_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)


def text_of(prompt: list[int], num_tokens: int) -> str:
    return " ".join(f"w{token}" for token in continuation(prompt, num_tokens))


EXPECTED = [text_of(prompt, NUM_TOKENS) for prompt in PROMPTS]


async def test_streams_go_on_token_for_token_when_a_replica_is_killed_and_the_server_stays_ready(tmp_path: Path) -> None:
    begun = anyio.Event()
    async with two_replicas(tmp_path) as server, anyio.create_task_group() as tasks:
        texts: list[str] = []
        tasks.start_soon(collect, server, begun, texts)
        await begun.wait()
        assert await server.metrics("vllm:num_requests_running") == {"0": 3, "1": 3}
        server.signal(0, signal.SIGKILL)
        with anyio.fail_after(20):
            while (await server.metrics("streamserve:engine_up"))["0"]:
                assert (await server.client.get("/ready")).status_code == 200
            assert (await server.client.get("/health")).status_code == 200
            while texts != EXPECTED or (await server.metrics("streamserve:engine_up")) != {"0": 1, "1": 1}:
                await anyio.lowlevel.checkpoint()
        assert await server.metrics("streamserve:engine_restarts_total") == {"all": 1}


async def test_streams_of_a_replica_that_hangs_go_on_elsewhere_and_new_ones_do_not_wait_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamserve.engine.remote.STATS_TIMEOUT_S", 0.1)
    monkeypatch.setattr("streamserve.engine.watchdog.POLL_INTERVAL_S", 0.05)
    monkeypatch.setattr("streamserve.engine.replicas.replica_set.POLL_INTERVAL_S", 0.05)
    begun = anyio.Event()
    async with two_replicas(tmp_path, "--engine-hang-timeout", "1") as server, anyio.create_task_group() as tasks:
        texts: list[str] = []
        tasks.start_soon(collect, server, begun, texts)
        await begun.wait()
        server.signal(1, signal.SIGSTOP)
        body = {"model": "m", "prompt": [5, 6], "max_tokens": 4, "ignore_eos": True}
        with anyio.fail_after(20):
            for _ in range(3):
                answer = await server.client.post("/v1/completions", json=body)
                assert answer.json()["choices"][0]["text"].strip() == text_of([5, 6], 4)
            while texts != EXPECTED:
                await anyio.lowlevel.checkpoint()


async def collect(server: TwoReplicas, begun: anyio.Event, texts: list[str]) -> None:
    texts += await server.texts(begun)


@pytest.mark.slow
def test_a_real_server_continues_greedy_texts_when_one_of_its_engines_is_killed() -> None:
    """In float32, in which a text does not depend on how its context was computed."""
    options = ("-dp", "2", "--dtype", "float32", "--kv-cache-memory", "64M", "--max-model-len", "1024", "--enforce-eager")
    prompts = [f"Chapter {number}. Once upon a time" for number in range(4)]
    with serve_process("--model", "demo", *options) as server:
        server.wait_ready()
        url, engines = server.base_url, running(server.children, "engine.process.main")
        assert len(engines) == 2
        begun = Barrier(len(prompts) + 1)
        with ThreadPoolExecutor() as threads:
            expected = list(threads.map(partial(read_text, url), prompts))
            streams = [threads.submit(read_text, url, prompt, begun.wait) for prompt in prompts]
            begun.wait(60)
            os.kill(engines[0], signal.SIGKILL)
            assert [stream.result(timeout=120) for stream in streams] == expected
        assert httpx.get(f"{url}/ready").status_code == 200
        server.wait_for(lambda: "ended with status -9; starting it again (1 of 3 times in ten minutes)" in server.log)
        server.wait_for(lambda: "sequences of replica 0 elsewhere" in server.log)
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


def read_text(url: str, prompt: str, on_text: Callable[[float], object] = lambda _: None) -> str:
    """The text of a prompt, streamed; calls `on_text` with a time-out once its tenth part has come."""
    body = {"prompt": prompt, "max_tokens": 60, "temperature": 0, "ignore_eos": True, "stream": True}
    parts = []
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as answer:
        for line in answer.iter_lines():
            if line.startswith("data: {"):
                parts.append(json.loads(line[6:])["choices"][0])
                if len(parts) == 10:
                    on_text(60.0)
    assert parts[-1]["finish_reason"] == "length"
    return "".join(part["text"] for part in parts)

"""The application on a Ray cluster of this machine: `pip install 'streamserve[ray-serve]'`, then `pytest -m ray`."""

from __future__ import annotations

import json
import logging
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300), pytest.mark.filterwarnings("ignore")]

OPTIONS = {
    "model": "demo",
    "device": "cpu",
    "dtype": "float32",
    "max-model-len": 512,
    "max-num-seqs": 8,
    "kv-cache-memory": "256M",
    "shutdown-timeout": 1,
    "api-server-count": 2,
}
GREEDY = {"temperature": 0, "max_tokens": 48, "ignore_eos": True, "return_token_ids": True}
PROMPTS = ["Once upon a time", "The capital of France", "A list of colours:", "def fibonacci(n):"]


def deploy(num_engines: int) -> None:
    """Deploy the application, or scale the one that is deployed, as `serve deploy` does."""
    from ray.serve.context import _get_global_client
    from ray.serve.schema import ServeDeploySchema

    application = {
        "name": "llm",
        "import_path": "streamserve.deploy.ray_serve:app",
        "args": OPTIONS,
        "deployments": [{"name": "Engine", "num_replicas": num_engines}],
    }
    _get_global_client().deploy_apps(ServeDeploySchema.parse_obj({"applications": [application]}))


class Application:
    """A running application, and the Ray that runs it."""

    def __init__(self, ray: Any, url: str) -> None:
        self._ray = ray
        self.url = url

    @property
    def engines(self) -> list[Any]:
        """Ray's handles of the actors of `Engine`."""
        names = [each["name"] for each in self._ray.util.list_named_actors(all_namespaces=True)]
        return [self._ray.get_actor(name, namespace="serve") for name in names if "#Engine#" in name]

    def wait_ready(self) -> None:
        """Wait until requests are taken, by two engines."""
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline:
            with suppress(httpx.HTTPError):
                if len(self.engines) == 2 and httpx.get(f"{self.url}/ready").status_code == 200:
                    return
            time.sleep(0.5)
        raise AssertionError("the application was not ready in time")

    def stream(self, prompt: str, *, on_token: Any = lambda count: None, **fields: Any) -> list[int]:
        """The token ids of a completion, streamed over SSE; `on_token` is called with their number at each event."""
        body = {
            "prompt": prompt,
            "temperature": 0,
            "max_tokens": 48,
            "ignore_eos": True,
            "return_token_ids": True,
            "stream": True,
        }
        token_ids: list[int] = []
        with httpx.stream("POST", f"{self.url}/v1/completions", json={**body, **fields}, timeout=120) as response:
            assert response.status_code == 200, response.read()
            for line in response.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    for choice in event["choices"]:
                        token_ids += choice.get("token_ids") or []
                    on_token(len(token_ids))
        return token_ids


@pytest.fixture(scope="module")
def application() -> Iterator[Application]:
    """Two engines and two API workers."""
    ray = pytest.importorskip("ray")
    serve = pytest.importorskip("ray.serve")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    ray.init(num_cpus=8, include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False)
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        deploy(num_engines=2)
        application = Application(ray, f"http://127.0.0.1:{port}")
        application.wait_ready()
        yield application
    finally:
        serve.shutdown()
        ray.shutdown()


@pytest.fixture(scope="module")
def undisturbed(application: Application) -> dict[str, list[int]]:
    """What the model writes after each prompt."""
    return {prompt: application.stream(prompt) for prompt in PROMPTS}


def test_a_websocket_carries_what_sse_does(application: Application, undisturbed: dict[str, list[int]]) -> None:
    token_ids: list[int] = []
    with connect(application.url.replace("http", "ws") + "/v1/ws") as connection:
        body = {**GREEDY, "prompt": PROMPTS[0]}
        connection.send(json.dumps({"type": "completion.create", "stream_id": "1", **body}))
        while (message := json.loads(connection.recv(60)))["type"] == "completion.chunk":
            token_ids += message["data"]["choices"][0].get("token_ids") or []
    assert message["type"] == "completion.done"
    assert token_ids == undisturbed[PROMPTS[0]]


def test_a_response_is_found_whichever_api_worker_is_asked(application: Application) -> None:
    body = {"model": "demo", "input": "Hello", "max_output_tokens": 24, "temperature": 0, "background": True}
    with httpx.Client(base_url=application.url, timeout=60) as client:
        created = client.post("/v1/responses", json=body).json()
        replays = []
        for _ in range(8):
            # A connection each: Ray Serve chooses among the API workers anew.
            response = httpx.get(f"{application.url}/v1/responses/{created['id']}?stream=true", timeout=60)
            assert response.status_code == 200, response.text
            replays.append(response.text)
    assert len(set(replays)) == 1
    assert "response.completed" in replays[0]


def test_a_reader_that_leaves_frees_its_sequence(application: Application) -> None:
    body = {**GREEDY, "prompt": PROMPTS[0], "max_tokens": 400, "stream": True}
    with httpx.stream("POST", f"{application.url}/v1/completions", json=body, timeout=60) as response:
        next(response.iter_lines())
    deadline = time.monotonic() + 10
    while httpx.get(f"{application.url}/load").json()["num_requests_running"]:
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_streams_of_an_engine_whose_actor_is_killed_continue_with_the_next_token_at_another(
    application: Application, undisturbed: dict[str, list[int]]
) -> None:
    killed: list[Any] = []

    def kill_one(num_tokens: int) -> None:
        if num_tokens >= 12 and not killed:
            killed.append(application.engines[0])
            application._ray.kill(killed[0])

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        streams = [pool.submit(application.stream, prompt, on_token=kill_one) for prompt in PROMPTS]
        assert [stream.result() for stream in streams] == [undisturbed[prompt] for prompt in PROMPTS]
    assert killed


def test_streams_of_an_engine_that_is_scaled_in_continue_with_the_next_token_at_another(
    application: Application, undisturbed: dict[str, list[int]]
) -> None:
    scaled: list[int] = []

    def scale_in(num_tokens: int) -> None:
        if num_tokens >= 4 and not scaled:
            scaled.append(num_tokens)
            deploy(num_engines=1)

    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        streams = [pool.submit(application.stream, prompt, on_token=scale_in, max_tokens=160) for prompt in PROMPTS]
        wholes = [stream.result() for stream in streams]
    assert [whole[:48] for whole in wholes] == [undisturbed[prompt] for prompt in PROMPTS]
    assert [len(whole) for whole in wholes] == [160] * len(PROMPTS)

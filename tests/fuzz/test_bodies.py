"""Whatever the body: an answer or an error, both as OpenAI's; no 5xx, no hang, and afterwards every block is free."""

from __future__ import annotations

import json

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz.bodies import bodies
from tests.fuzz.idle import wait_until_all_is_free

PATHS = ["/v1/completions", "/v1/chat/completions"]
PHASES = [Phase.explicit, Phase.reuse, Phase.generate]  # shrinking would send hundreds more
QUICK = settings(max_examples=100, deadline=None, phases=PHASES, suppress_health_check=list(HealthCheck))
THOROUGH = settings(QUICK, max_examples=1000)


@pytest.fixture(params=PATHS)
def path(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_any_body_is_answered(path: str, client: httpx.Client) -> None:
    send_many(path, client, QUICK)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_bodies_are_answered(path: str, client: httpx.Client) -> None:
    send_many(path, client, THOROUGH)


def send_many(path: str, client: httpx.Client, how: settings) -> None:
    statuses: list[int] = []

    @how
    @given(bodies(path))
    def send(body: bytes) -> None:
        response = client.post(path, content=body, headers={"Content-Type": "application/json"})
        statuses.append(response.status_code)
        check(response)

    send()
    assert statuses.count(200) > len(statuses) / 20, "the bodies are too wild to reach the engine"
    assert statuses.count(400) > len(statuses) / 20
    wait_until_all_is_free(client)


def check(response: httpx.Response) -> None:
    assert response.status_code < 500, response.text
    if response.status_code >= 400:
        check_error(response.json())
    elif response.headers["content-type"].startswith("text/event-stream"):
        check_events(response.text)
    else:
        assert response.json()["choices"] is not None


def check_error(body: object) -> None:
    assert isinstance(body, dict)
    assert set(body) == {"error"}
    error = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert error["message"]
    assert isinstance(error["type"], str)


def check_events(text: str) -> None:
    events = [block.removeprefix("data: ") for block in text.split("\n\n") if block.strip("\n")]
    assert events[-1] == "[DONE]"
    assert events.count("[DONE]") == 1
    for event in map(json.loads, events[:-1]):
        if "error" in event:
            check_error(event)
            assert event["error"]["type"] != "server_error", event

"""Which pages may use a server, and under which names: a browser sends requests to this machine for any page that it shows."""

from __future__ import annotations

import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from streamserve.server.config import CorsConfig
from streamserve.server.http.access.origins import OriginCheck
from streamserve.server.http.errors import error_body
from tests.server.ws.session import session
from tests.support.command_line import serve_options_of as options
from tests.support.live_server import LiveServer, live_server
from tests.support.raw_http import request
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

STRANGERS = ("https://stranger.example", "null", "http://[", "http://127.0.0.1.stranger.example")


def fault(
    *,
    host: str = "localhost:8000",
    origin: str | None = None,
    at: Any = ("127.0.0.1", 8000),
    method: str = "POST",
    allowed: tuple[str, ...] = (),
    has_keys: bool = False,
) -> str | None:
    """The code of the refusal of a request."""
    headers = [(b"host", host.encode())] + ([] if origin is None else [(b"origin", origin.encode())])
    scope: Any = {"type": "http", "method": method, "path": "/", "headers": headers, "server": at}
    if method == "WEBSOCKET":
        scope = {"type": "websocket", "path": "/", "headers": headers, "server": at}

    async def app(*_: Any) -> None: ...

    check = OriginCheck(app, allowed, has_keys=has_keys, error_body=lambda _: error_body, on_refused=lambda _: None)
    error = check.fault(scope)
    return None if error is None else error.code


@pytest.mark.parametrize("method", ["POST", "GET", "WEBSOCKET"])
@pytest.mark.parametrize("origin", STRANGERS)
def test_without_keys_no_other_sites_page_gets_anything(origin: str, method: str) -> None:
    assert fault(origin=origin, method=method) == "origin_forbidden"
    assert fault(origin=origin, method=method, at=("10.0.0.7", 8000), host="10.0.0.7:8000") == "origin_forbidden"
    assert fault(origin=origin, method=method, allowed=("https://friend.example",)) == "origin_forbidden"
    assert fault(origin=origin, method=method, allowed=("*",)) is None


@pytest.mark.parametrize(
    "host", ["localhost:8000", "127.0.0.1:8000", "[::1]:8000", "gpu7", "Gpu7.local:8000", "llm.home.arpa."]
)
def test_the_servers_own_page_may_use_it_by_names_that_no_stranger_can_have(host: str) -> None:
    for method in ("POST", "GET", "WEBSOCKET"):
        assert fault(host=host, origin=f"http://{host}", method=method) is None
        assert fault(host=host, method=method) is None


@pytest.mark.parametrize(
    "host", ["rebound.example:8000", "localhost.rebound.example", "rebound.example.", "rebound.example:1:2", "[:.]"]
)
def test_a_name_that_is_made_to_resolve_to_this_machine_opens_nothing(host: str) -> None:
    for method in ("POST", "GET", "WEBSOCKET"):
        assert fault(host=host, method=method) == "host_forbidden"
        assert fault(host=host, origin=f"http://{host}".lower(), method=method) == "host_forbidden"
        assert fault(host=host, method=method, at=("::1", 8000)) == "host_forbidden"


def test_programs_of_a_network_may_call_the_server_by_any_name_and_pages_may_not() -> None:
    network = ("10.0.0.7", 8000)
    assert fault(host="llm.corp.example:8000", at=network) is None
    assert fault(host="llm.corp.example:8000", at=network, origin="http://llm.corp.example:8000") == "host_forbidden"
    named = ("http://llm.corp.example:8000",)
    assert fault(host="llm.corp.example:8000", at=network, origin=named[0], allowed=named) is None
    assert fault(host="llm.corp.example:8000", allowed=named) is None


def test_with_keys_only_sockets_of_other_origins_are_refused() -> None:
    stranger = "https://stranger.example"
    assert fault(host="llm.example", origin=stranger, has_keys=True) is None
    assert fault(host="llm.example", origin=stranger, has_keys=True, method="WEBSOCKET") == "origin_forbidden"
    assert fault(host="llm.example", origin="https://llm.example", has_keys=True, method="WEBSOCKET") is None


def test_what_another_worker_has_let_in_is_not_checked_again() -> None:
    assert fault(host="sibling", origin="https://friend.example", at=("/tmp/api-1.sock", None)) is None


async def code_of(server: LiveServer, headers: dict[str, str]) -> tuple[int, str | None, dict[str, str]]:
    """Status, error code and headers of a completion that is posted as a page can post without a preflight."""
    body = b'{"prompt": "p", "max_tokens": 1}'
    async with request(
        server.port, "POST", "/v1/completions", body, headers={"Content-Type": "text/plain", **headers}
    ) as response:
        answer = json.loads(await response.body())
    return response.status, answer.get("error", {}).get("code"), response.headers


async def test_a_form_that_a_page_posts_reaches_no_engine_and_programs_do() -> None:
    async with live_server(ScriptedEngine(reply=text_reply("in"))) as server:
        status, code, headers = await code_of(server, {"Origin": "https://stranger.example"})
        assert (status, code, "access-control-allow-origin" in headers) == (403, "origin_forbidden", False)
        assert (await code_of(server, {"Host": f"rebound.example:{server.port}"}))[:2] == (403, "host_forbidden")
        assert server.engine.num_asked == 0
        assert (await code_of(server, {}))[0] == 200


async def test_a_page_of_another_site_opens_no_socket_unless_it_is_allowed() -> None:
    allowed = CorsConfig(origins=("https://friend.example",))
    for api_keys in ([], ["secret"]):
        key = {"Authorization": "Bearer secret"}
        async with live_server(ScriptedEngine(), cors=allowed, api_keys=api_keys) as server:
            with pytest.raises(InvalidStatus) as refused:
                async with session(server.port, origin=STRANGERS[0], additional_headers=key):
                    raise AssertionError("the upgrade was accepted")
            assert json.loads(refused.value.response.body)["error"]["code"] == "origin_forbidden"
            for welcome in ("https://friend.example", f"http://127.0.0.1:{server.port}", None):
                async with session(server.port, origin=welcome, additional_headers=key) as client:
                    await client.send({"type": "ping"})
                    assert (await client.receive())["type"] == "pong"


def test_a_server_is_open_to_others_only_by_a_key_or_by_a_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("STREAMSERVE_API_KEY", "VLLM_API_KEY", "STREAMSERVE_HOST"):
        monkeypatch.delenv(name, raising=False)
    bare, keyed = options("demo"), options("demo", "--api-key", "k")
    told = options("demo", "--host", "0.0.0.0", "--allowed-origins", '["*"]')
    assert (bare.listen.host, bare.listen.is_local, bare.server.cors) == ("127.0.0.1", True, CorsConfig())
    assert (keyed.listen.host, keyed.listen.is_local, keyed.server.cors) == ("0.0.0.0", False, CorsConfig(origins=("*",)))
    assert (told.listen.host, told.listen.is_local, told.server.cors) == ("0.0.0.0", False, CorsConfig(origins=("*",)))

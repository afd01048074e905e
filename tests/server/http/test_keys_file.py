"""The keys file: what it says counts, what it says wrongly is told without quoting it, and it is read again while serving."""

from __future__ import annotations

from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from streamserve.errors import AuthenticationFailed, ConfigError
from streamserve.server.http.access.keys_file import read_keys_file
from streamserve.types import Tenant
from tests.server.ws.session import session
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

Write = Callable[[str], str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the file and returns its path; `{alice}` stands for the hash of the key "alice"."""

    def write(text: str) -> str:
        path = tmp_path / "keys.yaml"
        path.write_text(text.format(**{name: digest(name) for name in ("alice", "bob", "next")}))
        return str(path)

    return write


def digest(key: str) -> str:
    return sha256(key.encode()).hexdigest()


def test_an_entry_is_a_tenant_with_its_limits_and_all_its_keys(write: Write) -> None:
    keys = read_keys_file(
        write(
            """
            - name: alice
              sha256: [{alice}, {next}]
              weight: 2
              max_concurrency: 8
              max_queue_share: 0.25
              requests_per_minute: 600
              tokens_per_minute: 100000
            - {{name: bob, sha256: {bob}}}
            """
        )
    )
    alice = Tenant(
        name="alice", weight=2, max_concurrency=8, max_queue_share=0.25, requests_per_minute=600, tokens_per_minute=100_000
    )
    assert [(key.sha256.hex(), key.tenant) for key in keys] == [
        (digest("alice"), alice),
        (digest("next"), alice),
        (digest("bob"), Tenant(name="bob")),
    ]


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("- {{name: a, sha256: plain-text-key}}", "sha256 must be 64 digits"),
        ("- {{name: a, sha256: []}}", "sha256 must be 64 digits"),
        ("- {{name: a/b, sha256: {alice}}}", "a name is letters"),
        ("- {{name: key-1, sha256: {alice}}}", "a name is letters"),
        ("- {{name: a, sha256: {alice}}}\n- {{name: a, sha256: {bob}}}", "there twice"),
        ("- {{name: a, sha256: {alice}, weight: 0}}", "weight"),
        ("- {{name: a, sha256: {alice}, max_queue_share: 1.5}}", "max_queue_share"),
        ("- {{name: a, sha256: {alice}, requests_per_minute: 0}}", "requests_per_minute"),
        ("- {{name: a, sha256: {alice}, requests_per_minut: 5}}", "unknown field `requests_per_minut`"),
        ("- {{name: a, key: secret-key}}", "unknown field `key`|missing required field"),
        ("- {{name: a, sha256: [secret-key", "is no YAML"),
        ("[]", "has no keys"),
        (f"- {{{{name: a, sha256: {digest('')}}}}}", "hash of an empty key"),
    ],
)
def test_a_file_with_a_fault_is_refused_in_one_line_that_holds_no_key(write: Write, text: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as refusal:
        read_keys_file(write(text))
    assert "\n" not in refusal.value.message
    assert "secret-key" not in refusal.value.message
    assert "plain-text-key" not in refusal.value.message


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="--api-keys-file /nowhere: No such file"):
        read_keys_file("/nowhere")


async def test_keys_and_limits_change_while_the_server_runs_for_open_sockets_too(write: Write) -> None:
    path = write("- {{name: alice, sha256: {alice}}}\n- {{name: bob, sha256: {bob}}}")
    engine = ScriptedEngine(reply=text_reply("ok"))
    async with live_server(engine, keys_file=path, file_keys=read_keys_file(path)) as server:

        async def status(key: str) -> int:
            headers = {"Authorization": f"Bearer {key}"}
            async with httpx.AsyncClient(base_url=server.base_url, headers=headers) as client:
                return (await client.post("/v1/completions", json={"prompt": "hi"})).status_code

        assert [await status(key) for key in ("alice", "bob", "next", digest("alice"))] == [200, 200, 401, 401]
        sockets = [session(server.port, additional_headers={"x-api-key": key}) for key in ("alice", "bob")]
        async with sockets[0] as alice, sockets[1] as bob:
            keys = read_keys_file(write("- {{name: alice, sha256: {next}, weight: 3}}"))
            server.service.api_keys.replace(keys)
            assert [await status(key) for key in ("alice", "bob", "next")] == [401, 401, 200]
            await alice.chat("s")
            assert (await alice.ending("s"))["type"] == "chat.completion.done"
            await bob.chat("s")
            assert (await bob.ending("s"))["status"] == AuthenticationFailed.status
        assert [spec.tenant.weight for spec in engine.specs.values()] == [1, 1, 3, 3]

"""Batches: every line has a result of its own, whatever the others are, and a batch that was cut off goes on."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest

from streamserve.batch.results_file import open_results
from streamserve.batch.run import Counts, run_batch
from streamserve.engine.base import SequenceStream
from streamserve.errors import ConfigError, EngineDead, QueueFull
from streamserve.frontend import Frontend
from streamserve.server.app import create_app
from streamserve.server.config import ServerConfig
from streamserve.server.service import Service
from streamserve.types import SequenceSpec
from tests.support.byte_tokenizer import EOS, byte_tokenizer
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def app_of(engine: ScriptedEngine) -> AsyncIterator[Any]:
    service = Service(ServerConfig(model_names=["scripted"], cors=None))
    service.attach(Frontend(engine, byte_tokenizer(), eos_token_ids=[EOS]), {})
    async with service.delivery.running():
        yield create_app(service)


def line(custom_id: str | None, url: str = "/v1/completions", **body: Any) -> bytes:
    fields = {} if custom_id is None else {"custom_id": custom_id}
    return json.dumps({**fields, "method": "POST", "url": url, "body": body or {"prompt": "a"}}).encode() + b"\n"


async def run(engine: ScriptedEngine, lines: list[bytes], path: Path, *, concurrency: int = 4) -> Counts:
    counts = Counts()
    with open_results(path) as results, anyio.fail_after(20):
        async with app_of(engine) as app:
            await run_batch(app, lines, results, counts, concurrency=concurrency, on_result=lambda: None)
    return counts


def results_in(path: Path) -> dict[Any, Any]:
    """By `custom_id`, or by number of the line."""
    results = [json.loads(text) for text in path.read_text().splitlines()]
    named = {result["custom_id"] or result["error"]["line"]: result for result in results}
    assert len(named) == len(results)
    return named


async def test_each_line_is_answered_as_its_path_answers_over_http(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    lines = [
        line("text", prompt="a", max_tokens=4),
        line("chat", "/v1/chat/completions", messages=[{"role": "user", "content": "你好"}]),
        line("response", "/v1/responses", input="a"),
        b"\n",
    ]
    counts = await run(ScriptedEngine(reply=text_reply("秋天")), lines, path)
    assert counts == Counts(answered=3)
    results = results_in(path)
    assert results["text"]["response"]["body"]["choices"][0]["text"] == "秋天"
    assert results["chat"]["response"]["body"]["choices"][0]["message"]["content"] == "秋天"
    assert results["response"]["response"]["body"]["output"][0]["content"][0]["text"] == "秋天"
    for result in results.values():
        assert result["id"].startswith("batch_req_")
        assert (result["response"]["status_code"], result["error"]) == (200, None)
        assert result["response"]["request_id"]


@pytest.mark.parametrize(
    ("text", "code", "words"),
    [
        (b"nonsense\n", "invalid_request", "not JSON"),
        (b'{"custom_id": 7}\n', "invalid_value", "custom_id"),
        (b'{"custom_id": "x", "url": "/v1/completions"}\n', "invalid_value", "body: is required"),
        (line(None), "invalid_value", "custom_id: is required"),
        (line("x", "/v1/files"), "invalid_value", "'/v1/files' is none of /v1/chat/completions"),
        (line("x").replace(b"POST", b"GET"), "unsupported_parameter", "method"),
        (line("x", prompt="a", stream=True), "unsupported_parameter", "body.stream"),
        (line("x", "/v1/responses", input="a", background=True), "unsupported_parameter", "body.background"),
        (line("x", prompt="a", temperature=-1), "invalid_value", "temperature"),
        (line("x", model="other", prompt="a"), "model_not_found", "other"),
        (line("b"), "invalid_value", "'b' is that of an earlier line"),
        (b"\xff\n", "invalid_request", "not JSON"),
    ],
)
async def test_a_line_that_is_refused_stops_no_other(tmp_path: Path, text: bytes, code: str, words: str) -> None:
    path = tmp_path / "results.jsonl"
    lines = [line("b"), text, line("c")]
    assert await run(ScriptedEngine(reply=text_reply("ok")), lines, path) == Counts(answered=2, refused=1)
    results = results_in(path)
    [refused] = [result for name, result in results.items() if name not in ("b", "c")]
    assert refused["error"]["code"] == code
    assert words in refused["error"]["message"]
    assert results["b"]["error"] is results["c"]["error"] is None
    again = ScriptedEngine(reply=text_reply("ok"))
    assert await run(again, lines, path) == Counts(skipped=3)
    assert again.num_asked == 0


async def test_a_batch_that_was_cut_off_goes_on_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    lines = [line(str(number)) for number in range(6)]
    await run(ScriptedEngine(reply=text_reply("ok")), lines[:3], path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])  # the process was killed while it wrote
    engine = ScriptedEngine(reply=text_reply("ok"))
    assert await run(engine, lines, path) == Counts(answered=4, skipped=2)
    assert set(results_in(path)) == set("012345")
    assert path.read_bytes().startswith(b"".join(whole.splitlines(keepends=True)[:2]))


async def test_lines_whose_engine_is_gone_have_no_result_and_are_sent_again(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    engine = ScriptedEngine(reply=text_reply("ok"))
    lines = [line("a"), line("b")]
    await run(engine, lines[:1], path)
    engine.refuse = EngineDead("the engine ended")
    assert await run(engine, lines, path) == Counts(skipped=1, failure="the engine ended")
    assert set(results_in(path)) == {"a"}
    assert await run(ScriptedEngine(reply=text_reply("ok")), lines, path) == Counts(answered=1, skipped=1)


class FullAtFirst(ScriptedEngine):
    """Has no place for the first line that comes."""

    async def open(self, specs: list[SequenceSpec]) -> list[SequenceStream]:
        self.refuse = None if self.num_asked else QueueFull("full", retry_after_s=0.01)
        return await super().open(specs)


async def test_a_line_waits_for_a_place_in_the_queue(tmp_path: Path) -> None:
    engine = FullAtFirst(reply=text_reply("ok"))
    assert await run(engine, [line("a")], tmp_path / "results.jsonl") == Counts(answered=1)
    assert engine.num_asked == 2


async def test_no_more_lines_are_in_flight_than_may_be(tmp_path: Path) -> None:
    engine = ScriptedEngine()

    async def finish_all() -> None:
        for number in range(7):
            admitted = await engine.sequences(number + 1)
            assert len(admitted) <= number + 2
            engine.finish(admitted[number], "length")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(finish_all)
        counts = await run(engine, [line(str(number)) for number in range(7)], tmp_path / "results.jsonl", concurrency=2)
    assert counts == Counts(answered=7)


def test_a_file_that_is_no_file_of_results_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    path.write_bytes(line("a"))
    with pytest.raises(ConfigError, match="line 1 is no result"), open_results(path):
        pass
    assert path.read_bytes() == line("a")
    with pytest.raises(ConfigError, match="Is a directory"), open_results(tmp_path):
        pass


def test_one_batch_at_a_time_writes_a_file(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    with open_results(path), pytest.raises(ConfigError, match="another batch"), open_results(path):
        pass

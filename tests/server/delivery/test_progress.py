"""Progress events of a stream, before its first token."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from streamserve.types import TokenDelta
from streamserve.types.progress import PrefillProgress, QueueProgress
from tests.server.ws.session import session
from tests.support.live_server import live_server
from tests.support.raw_http import events, request
from tests.support.scripted_engine import ScriptedEngine
from tests.support.tiny_server import tiny_server

pytestmark = pytest.mark.anyio

CHATS = "/v1/chat/completions"
CHAT = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
PROGRESS: dict[str, Any] = {"include_progress": True}


def waits(engine: ScriptedEngine, sequence: str) -> None:
    """Have a sequence wait, be computed, and say "ok"."""
    for progress in (QueueProgress(2, 1.5), QueueProgress(1), PrefillProgress(9, 4, 4, 0.0)):
        engine.generate(sequence, TokenDelta([], progress=progress))
    engine.generate(sequence, TokenDelta([ord("o")], queue_s=1.0, progress=PrefillProgress(9, 4, 9, 12.5)))
    engine.say(sequence, "k")
    engine.finish(sequence)


async def test_progress_comes_without_choices_and_before_the_role() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        body = {**CHAT, "stream_options": {**PROGRESS, "include_usage": True}}
        async with request(server.port, "POST", CHATS, body) as response:
            [sequence] = await engine.sequences()
            waits(engine, sequence)
            chunks = events(await response.body())
        assert engine.specs[sequence].reports_progress
        ttft = server.service.metrics.ttft_s
    assert [chunk["progress"] for chunk in chunks[:4]] == [
        {"index": 0, "state": "queued", "position": 2, "wait_s": 1.5},
        {"index": 0, "state": "queued", "position": 1, "wait_s": None},
        {"index": 0, "state": "prefill", "total": 9, "cache": 4, "processed": 4, "time_ms": 0.0},
        {"index": 0, "state": "prefill", "total": 9, "cache": 4, "processed": 9, "time_ms": 12.5},
    ]
    assert all(chunk["choices"] == [] and chunk["usage"] is None for chunk in chunks[:4])
    assert chunks[4]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks[5:-2]) == "ok"
    assert len({chunk["id"] for chunk in chunks[:-1]}) == 1
    assert ttft is not None


async def test_nobody_who_does_not_ask_is_told() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        for count, body in enumerate((CHAT, {**CHAT, "stream_options": {"include_progress": False}}), start=1):
            async with request(server.port, "POST", CHATS, body) as response:
                sequence = (await engine.sequences(count))[-1]
                engine.finish(sequence)
                await response.body()
            assert not engine.specs[sequence].reports_progress
        plain = {**CHAT, "stream": False, "stream_options": PROGRESS}
        async with request(server.port, "POST", CHATS, plain) as response:
            assert json.loads(await response.body())["error"]["param"] == "stream_options"


async def test_the_first_choice_of_every_prompt_reports() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server:
        body = {"prompt": ["a", "b"], "n": 2, "stream": True, "stream_options": PROGRESS}
        async with request(server.port, "POST", "/v1/completions", body) as response:
            sequences = await engine.sequences(4)
            assert [engine.specs[each].reports_progress for each in sequences] == [True, False, True, False]
            engine.generate(sequences[2], TokenDelta([], progress=QueueProgress(3)))
            for each in sequences:
                engine.finish(each)
            chunks = events(await response.body())
    assert [chunk["progress"]["index"] for chunk in chunks[:-1] if "progress" in chunk] == [2]


async def test_progress_is_numbered_and_resumed_as_all_events_of_a_socket_are() -> None:
    engine = ScriptedEngine()
    async with live_server(engine) as server, session(server.port) as client:
        await client.chat("s", resumable=True, stream_options=PROGRESS)
        [sequence] = await engine.sequences()
        waits(engine, sequence)
        await client.ending("s")
        own = client.of("s")
    assert [event["data"].get("progress", {}).get("state") for event in own[:5]] == ["queued"] * 2 + ["prefill"] * 2 + [None]
    assert [event["sequence_number"] for event in own] == list(range(len(own)))


async def test_the_official_client_reads_a_real_prompt_in_chunks(tmp_path: Path) -> None:
    async with tiny_server(tmp_path) as server, openai.AsyncOpenAI(base_url=server.base_url, api_key="-") as client:
        extra: Any = {"stream_options": {"include_usage": True, **PROGRESS}}
        stream = await client.completions.create(
            model="tiny", prompt="x" * 100, max_tokens=3, stream=True, temperature=0, extra_body={"ignore_eos": True, **extra}
        )
        chunks = [chunk async for chunk in stream]
    told = [(chunk.model_extra or {})["progress"] for chunk in chunks if "progress" in (chunk.model_extra or {})]
    assert [(each["total"], each["processed"]) for each in told] == [(100, 0), (100, 32), (100, 64), (100, 96), (100, 100)]
    assert sum(len(chunk.choices) for chunk in chunks) >= 1
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 3

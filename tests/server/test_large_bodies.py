"""The largest legal body of each endpoint, and what that costs every other stream: the event loop is never held for long."""

from __future__ import annotations

import gc
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import anyio
import msgspec
import pytest
from anyio.abc import Process
from anyio.streams.buffered import BufferedByteReceiveStream

from streamserve.process.switch_interval import shorten_switch_interval
from streamserve.types import SequenceSpec, TokenDelta, TokenLogprobs
from tests.support.body_sender import LargeBody
from tests.support.live_server import live_server
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio

MAX_HELD_S = 0.020
ATTEMPTS = 4

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
MESSAGE, USER = '{"role":"user","content":""}', '"max_tokens":1,"messages":[{"role":"user","content":"a"}]'
SCHEMA = '"response_format":{"type":"json_schema","json_schema":{"name":"s","schema":{"type":"object","properties":{'
CREATE = '"type":"completion.create","stream_id":"a"'
TOOL = (
    '{"type":"function","function":{"name":"f%d","parameters":{"type":"object","properties":{'
    + ",".join(f'"p{number}":{{"type":"string"}}' for number in range(30))
    + "}}}}"
)


def body(path: str, before: str, each: str = "", count: int = 1, after: str = "") -> LargeBody:
    return LargeBody(path=path, before=before, each=each, count=count, after=after)


BODIES = {
    "messages": body(CHAT, '{"max_tokens":1,"messages":[', MESSAGE, 8192, "]}"),
    "too many messages": body(CHAT, '{"messages":[', MESSAGE, 570_000, "]}"),
    "one message": body(CHAT, '{"max_tokens":1,"messages":[{"role":"user","content":"', "é \\n\U0001f600", 600_000, '"}]}'),
    "parts": body(CHAT, '{"max_tokens":1,"messages":[{"role":"user","content":[', '{"type":"text","text":""}', 13_000, "]}]}"),
    "tools": body(CHAT, f'{{{USER},"tool_choice":"none","tools":[', TOOL, 250, "]}"),
    "stop strings": body(CHAT, f'{{{USER},"stop":[', '"%dstop"', 6500, "]}"),
    "bad words": body(CHAT, f'{{{USER},"bad_words":[', '"bad %d"', 1024, "]}"),
    "biases": body(CHAT, f'{{{USER},"logit_bias":{{', '"%d":1', 49_000, "}}"),
    "allowed ids": body(CHAT, f'{{{USER},"allowed_token_ids":[', "97", 1_000_000, "]}"),
    "ids of nothing": body(CHAT, f'{{{USER},"zork":[', "97", 5_000_000, "]}"),
    "arrays of nothing": body(CHAT, f'{{{USER},"zork":[', "[]", 65_000, "]}"),
    "names of nothing": body(CHAT, f"{{{USER},", '"k%d":0', 60_000, "}"),
    "depth": body(CHAT, f'{{{USER},"zork":{"[" * 126}', "0", 1, "]" * 126 + "}"),
    "too much depth": body(CHAT, "[" * 15_000_000),
    "an id": body(CHAT, f'{{{USER},"request_id":"', "aaaaaaa", 1_000_000, '"}'),
    "a response's id": body(RESPONSES, '{"input":"a","previous_response_id":"resp_', "aaaaaaa", 1_000_000, '"}'),
    "a template": body(CHAT, f'{{{USER},"chat_template":"', "{% if messages %}a{% endif %}", 8000, '"}'),
    "a schema": body(CHAT, f"{{{USER},{SCHEMA}", '"p%d":{"type":"string","pattern":"^[a-z]{1,9}$"}', 8000, "}}}}}"),
    "a schema's depth": body(CHAT, f"{{{USER},{SCHEMA}", '"a":{"type":"object","properties":{' * 50, 1, "}" * 105),
    "an expression": body(CHAT, f'{{{USER},"structured_outputs":{{"regex":"', "(a|b)*a(a|b)", 60_000, '"}}'),
    "a grammar": body(CHAT, f'{{{USER},"structured_outputs":{{"grammar":"start: ', "r%d", 60_000, '"}}'),
    "a choice": body(CHAT, f'{{{USER},"structured_outputs":{{"choice":[', '"choice %d"', 60_000, "]}}"),
    "a prompt of ids": body(COMPLETIONS, '{"max_tokens":1,"prompt":[', "97", 190_000, "]}"),
    "prompts of ids": body(COMPLETIONS, '{"max_tokens":1,"echo":true,"prompt":[', f"[{','.join(['97'] * 4000)}]", 250, "]}"),
    "prompts": body(COMPLETIONS, '{"max_tokens":1,"echo":true,"prompt":[', '"a"', 1024, "]}"),
    "choices": body(COMPLETIONS, '{"max_tokens":1,"n":128,"logit_bias":{"97":1},"prompt":[', '"a"', 8, "]}"),
    "scored prompt": body(COMPLETIONS, '{"max_tokens":1,"prompt_logprobs":20,"prompt":[', "97", 4000, "]}"),
    "scored echo": body(COMPLETIONS, '{"max_tokens":1,"echo":true,"logprobs":20,"prompt":[', "97", 4000, "]}"),
    "input items": body(RESPONSES, '{"request_id":"long","max_output_tokens":1,"input":[', MESSAGE, 8100, "]}"),
    "one turn more": body(RESPONSES, '{"previous_response_id":"resp_long","max_output_tokens":1,"input":"a"}'),
    "one input": body(RESPONSES, '{"max_output_tokens":1,"input":"', "a, b", 1_500_000, '"}'),
    "/tokenize": body("/tokenize", '{"prompt":"', "7777777", 900_000, '"}'),
    "/tokenize messages": body("/tokenize", '{"messages":[', MESSAGE, 8192, "]}"),
    "/detokenize": body("/detokenize", '{"tokens":[', "97", 1_000_000, "]}"),
    "a socket's ids": body("/v1/ws", f'{{{CREATE},"max_tokens":1,"prompt":[', "97", 190_000, "]}"),
    "a socket's halves": body("/v1/ws", f'{{{CREATE},"prompt":"', "\\ud800", 900_000, '"}'),
    "a socket's text": body("/v1/ws", f'{{{CREATE},"max_tokens":1,"prompt":"', "é \\n\U0001f600", 600_000, '"}'),
}


SCORED = [TokenLogprobs(97, -1.0, 1, [(token_id, -1.0) for token_id in range(20)])] * 3999


def reply(spec: SequenceSpec) -> list[TokenDelta]:
    """A token and the end; with the first what is asked for the prompt."""
    unscored = msgspec.structs.replace(spec.sampling, prompt_logprobs=None)
    first, *rest = text_reply("a")(msgspec.structs.replace(spec, sampling=unscored))
    if spec.sampling.prompt_logprobs is not None:
        first = TokenDelta(first.token_ids, first.logprobs, [None, *SCORED])
    return [first, *rest]


@pytest.fixture
def worker_process() -> Iterator[None]:
    """Settings of an API worker's process."""
    before = sys.getswitchinterval()
    shorten_switch_interval()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
    sys.setswitchinterval(before)


@asynccontextmanager
async def sender(port: int) -> AsyncIterator[Process]:
    command = [sys.executable, "-m", "tests.support.body_sender", str(port)]
    async with await anyio.open_process(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=None) as process:
        yield process
        process.kill()


def allowed_s() -> float:
    """20 ms, and more on machines where decoding the largest text alone takes most of that."""
    text = msgspec.json.encode("é \n\U0001f600" * 700_000)
    tries = []
    for _ in range(ATTEMPTS):
        started_at = time.process_time()
        msgspec.json.decode(text)
        tries.append(time.process_time() - started_at)
    return max(MAX_HELD_S, 2 * min(tries))


async def longest_hold_s(process: Process, large: LargeBody) -> tuple[float, int]:
    """The longest that the loop was held while this body was answered, in seconds of this process's CPU; and the status.

    On a machine with other work, time passes that the server does not take.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    lines = BufferedByteReceiveStream(process.stdout)
    longest = 0.0

    async def others() -> None:
        nonlocal longest
        last = time.process_time()
        while True:
            await anyio.sleep(0.001)
            now = time.process_time()
            longest, last = max(longest, now - last), now

    await process.stdin.send(msgspec.json.encode(large) + b"\n")
    assert await lines.receive_until(b"\n", 64) == b"ready"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(others)
        await process.stdin.send(b"\n")
        status = int(await lines.receive_until(b"\n", 64))
        tasks.cancel_scope.cancel()
    return longest, status


@pytest.mark.quiet
async def test_no_body_holds_up_other_streams_for_more_than_20_ms(worker_process: None) -> None:
    """500 000 messages held every stream of a worker for 11 s, five million ids for 0.7, an unknown field of `[]` for 1.5."""
    holds: dict[str, float] = {}
    statuses: dict[str, int] = {}
    allowed = allowed_s()
    engine = ScriptedEngine(reply=reply, max_model_len=200_000)
    async with (
        live_server(engine, trust_request_chat_template=True) as server,
        sender(server.port) as process,
    ):
        for name, large in BODIES.items():
            # What the machine adds is not there each time.
            for _ in range(ATTEMPTS):
                seconds, status = await longest_hold_s(process, large)
                assert status in (200, 400), (name, status)
                statuses[name] = status
                holds[name] = min(holds.get(name, seconds), seconds)
                if seconds <= allowed:
                    break
    print(*(f"{name:24} {seconds * 1000:6.1f} ms  {statuses[name]}" for name, seconds in holds.items()), sep="\n")
    assert {name: seconds for name, seconds in holds.items() if seconds > allowed} == {}

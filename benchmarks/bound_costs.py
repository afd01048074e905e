"""What each bound of a request costs other streams when a request reaches it: the gaps that eight streams see beside it.

    python benchmarks/bound_costs.py                    # all, in some five minutes
    python benchmarks/bound_costs.py schema regex --tries 5

Serves the demo model in small steps, so that computing another's prompt adds little, and reads eight streams while a process of
its own sends the body. Prints the longest gap beside the body and without one, in milliseconds: of some tries the shortest,
since other work on the machine only adds. `tests/server/test_large_bodies.py` measures in processor time how long the API
worker's loop is held by the same bodies.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import multiprocessing
import multiprocessing.pool
import os
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

from loadtest.run import serving

NUM_STREAMS, LONGEST_S, MIB = 8, 12.0, 1 << 20
SERVER = (
    *("--max-num-seqs", "160", "--max-num-batched-tokens", "192", "--max-model-len", "4096", "--kv-cache-memory", "512M"),
    *("--trust-request-chat-template", "--uvicorn-log-level", "warning", "--max-request-bytes", "16M"),
)
CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
ONE: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 4}
TOOL_FIELDS = {f"p{number}": {"type": "string"} for number in range(30)}


def bodies() -> Iterator[tuple[str, str, Any]]:
    """Name of the bound, path, and fields or text of a body that reaches it."""
    yield "body: bytes", CHAT, ONE | {"messages": [{"role": "user", "content": "a, b " * (16 * MIB // 5 - 100)}]}
    yield "body: 65 536 values", CHAT, ONE | {"zork": [[]] * 65_000}
    yield "body: names", CHAT, ONE | {f"k{number}": 0 for number in range(60_000)}
    yield "body: depth", CHAT, '{"zork":' + "[" * 127 + "]" * 127 + "," + json.dumps(ONE)[1:]
    yield "body: depth, too much", CHAT, "[" * (15 * MIB)
    yield "token ids", COMPLETIONS, {"prompt": [97] * 1_000_000, "max_tokens": 1}
    yield "messages", CHAT, ONE | {"messages": [{"role": "user", "content": ""}] * 8192}
    yield "tools", CHAT, ONE | {"tools": [_tool(number) for number in range(500)], "tool_choice": "none"}
    yield "tools, enforced", CHAT, ONE | {"tools": [_tool(number) for number in range(100)], "tool_choice": "required"}
    yield "choices", COMPLETIONS, {"prompt": ["a"] * 8, "n": 128, "max_tokens": 1}
    yield "prompts", COMPLETIONS, {"prompt": ["a"] * 1024, "max_tokens": 1}
    yield "stop strings", CHAT, ONE | {"stop": [f"{number}stop" for number in range(6500)], "max_tokens": 16}
    yield "bad words", CHAT, ONE | {"bad_words": [f"bad {number}" for number in range(1024)], "max_tokens": 16}
    yield "biases", CHAT, ONE | {"logit_bias": {str(number): 1 for number in range(49_000)}, "n": 16, "max_tokens": 8}
    yield "allowed ids", CHAT, ONE | {"allowed_token_ids": list(range(49_000)), "n": 16, "max_tokens": 8}
    yield "log-probabilities", COMPLETIONS, {"prompt": ["a"] * 32, "max_tokens": 16, "logprobs": 20, "ignore_eos": True}
    yield "prompt log-probabilities", COMPLETIONS, {"prompt": [97] * 1000, "max_tokens": 1, "prompt_logprobs": 20}
    yield "schema", CHAT, ONE | {"response_format": _schema(_wide(2000))}
    yield "schema: alternatives", CHAT, ONE | {"response_format": _schema({"anyOf": [_wide(12, n) for n in range(200)]})}
    yield "schema: depth", CHAT, ONE | {"response_format": _schema(_deep(40))}
    yield "regex", CHAT, ONE | {"structured_outputs": {"regex": "(a|b)*a" + "(a|b)" * 24}}
    yield "regex: counts", CHAT, ONE | {"structured_outputs": {"regex": "((a{1,300}b{1,300}){1,300}c){1,30}"}}
    yield "grammar", CHAT, ONE | {"structured_outputs": {"grammar": _grammar(3000)}}
    yield "choices of a grammar", CHAT, ONE | {"structured_outputs": {"choice": [f"choice {n}" for n in range(20_000)]}}
    yield (
        "template: never ends",
        CHAT,
        ONE | {"chat_template": "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}"},
    )
    yield "template: memory", CHAT, ONE | {"chat_template": "{{ 'x' * 900000000 }}{{ messages }}"}
    yield "id of a request", CHAT, ONE | {"request_id": "a" * (8 * MIB)}
    yield "id of a response", RESPONSES, {"input": "a", "previous_response_id": "resp_" + "a" * (8 * MIB)}
    yield "input items", RESPONSES, {"input": ONE["messages"] * 8192, "max_output_tokens": 1}
    yield "/tokenize", "/tokenize", {"prompt": "7" * (16 * MIB - 100)}
    yield "/detokenize", "/detokenize", {"tokens": [97] * 1_000_000}


def _tool(number: int) -> dict[str, Any]:
    return {"type": "function", "function": {"name": f"f{number}", "parameters": {"type": "object", "properties": TOOL_FIELDS}}}


def _schema(schema: dict[str, Any]) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "s", "schema": schema}}


def _wide(count: int, number: int = 0) -> dict[str, Any]:
    fields = {f"field{number}_{each}": {"type": "string", "pattern": f"^[a-z]{{1,{each % 50 + 1}}}$"} for each in range(count)}
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _deep(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(depth):
        schema = {"type": "object", "properties": {"a": schema, "b": {"type": "integer"}}, "required": ["a"]}
    return schema


def _grammar(count: int) -> str:
    rules = [f'r{number}: "a{number}" r{number + 1} | "b{number}"' for number in range(count)]
    return "\n".join(["start: r0", *rules, f'r{count}: "end"'])


def send(netloc: str, path: str, body: bytes) -> int:
    """POST a body; the status of the answer, or 0 when there is none in time."""
    connection = http.client.HTTPConnection(netloc, timeout=LONGEST_S)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read()
        return response.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


class Streams:
    """Eight streams that never end, and the gaps between their events."""

    def __init__(self, netloc: str) -> None:
        self._address = netloc.split(":")
        self._tasks: list[asyncio.Task[None]] = []
        self._events = [time.perf_counter()] * NUM_STREAMS
        self.gaps: list[float] = []

    async def start(self) -> None:
        """Begin to read them, and give them three seconds to get going."""
        self._tasks = [asyncio.create_task(self._read(number)) for number in range(NUM_STREAMS)]
        await asyncio.sleep(3.0)

    def stop(self) -> None:
        for task in self._tasks:
            task.cancel()

    def longest_ms(self) -> float:
        """The longest gap since the last call, one that has not ended included."""
        now = time.perf_counter()
        longest = max([*self.gaps, *(now - each for each in self._events)])
        self.gaps = []
        return longest * 1000

    async def _read(self, number: int) -> None:
        host, port = self._address
        body = json.dumps({"prompt": f"{number} once", "max_tokens": 1000, "ignore_eos": True, "stream": True})
        head = f"POST {COMPLETIONS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
        while True:
            reader, writer = await asyncio.open_connection(host, port)
            writer.write((head + body).encode())
            await reader.readuntil(b"data: ")
            self._events[number] = time.perf_counter()
            while data := await reader.read(65536):
                now = time.perf_counter()
                if b"[DONE]" in data:
                    break
                self.gaps.append(now - self._events[number])
                self._events[number] = now
            writer.close()


async def study(url: str, pool: multiprocessing.pool.Pool, names: list[str], tries: int) -> None:
    """Print what each body adds."""
    netloc = urlsplit(url).netloc
    streams = Streams(netloc)
    await streams.start()
    print(f"{'bound':26} {'quiet':>7} {'beside':>7} {'added':>7}   ms; load {os.getloadavg()[0]:.1f}")
    for name, path, fields in bodies():
        if names and not any(name.startswith(each) for each in names):
            continue
        body = fields.encode() if isinstance(fields, str) else json.dumps(fields).encode()
        quiet, beside, status = float("inf"), float("inf"), 0
        for _ in range(tries):
            streams.longest_ms()
            await asyncio.sleep(1.0)
            quiet = min(quiet, streams.longest_ms())
            sender = pool.apply_async(send, (netloc, path, body))
            status = await asyncio.to_thread(sender.get)
            beside = min(beside, streams.longest_ms())
        size = f"{len(body) / 1e6:.2f} MB"
        print(
            f"{name:26} {quiet:7.0f} {beside:7.0f} {max(0.0, beside - quiet):7.0f}   {path} {size} -> {status or 'gave up'}",
            flush=True,
        )
    streams.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="what the names of bounds begin with; all by default")
    parser.add_argument("--tries", type=int, default=3)
    options = parser.parse_args()
    with serving(*SERVER) as (url, _), multiprocessing.get_context("spawn").Pool(1) as pool:
        asyncio.run(study(url, pool, options.names, options.tries))


if __name__ == "__main__":
    main()

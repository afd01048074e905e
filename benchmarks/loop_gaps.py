"""How long the largest legal body of each endpoint keeps a server from answering anybody else.

    streamserve serve demo --api-server-count 1
    python benchmarks/loop_gaps.py http://127.0.0.1:8000

Asks for /live over and over on one connection while another sends the body; prints the longest wait, beside that of a quiet
server, in milliseconds; of some tries the shortest, since other work on the machine only adds. The sender is a process of its
own, so that its work is not counted. `tests/server/test_large_bodies.py` measures the same in processor time.
"""

from __future__ import annotations

import http.client
import json
import multiprocessing
import multiprocessing.pool
import sys
import time
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

MAX_BODY_BYTES = 16 << 20
TRIES = 3


def fill(before: str, each: str, after: str) -> bytes:
    """A body of as many repetitions as fit."""
    count = (MAX_BODY_BYTES - len(before) - len(after)) // (len(each) + 1)
    return (before + ",".join([each] * count) + after).encode()


def bodies() -> Iterator[tuple[str, str, bytes]]:
    """Name, path and body of each attempt."""
    chat, message = "/v1/chat/completions", '{"role":"user","content":""}'
    user: dict[str, Any] = {"messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    head = json.dumps(user)[:-1]
    yield "messages, all that fit", chat, fill('{"messages":[', message, "]}")
    yield "messages, 8192", chat, f'{{"max_tokens":1,"messages":[{",".join([message] * 8192)}]}}'.encode()
    yield "one message", chat, json.dumps({"messages": [{"role": "user", "content": "a, b " * 3_000_000}]}).encode()
    yield (
        "content parts, 16 000",
        chat,
        json.dumps(
            {"messages": [{"role": "user", "content": [{"type": "text", "text": ""}] * 16_000}], "max_tokens": 1}
        ).encode(),
    )
    yield "unknown field of []", chat, fill(head + ',"x":[', "[]", "]}")
    yield "unknown names", chat, (head + "".join(f',"k{n}":0' for n in range(1_000_000)) + "}").encode()
    yield "stop strings", chat, fill(head + ',"stop":[', '"ab"', "]}")
    yield "tools", chat, fill(head + ',"tools":[', '{"type":"function","function":{"name":"f"}}', "]}")
    yield "allowed_token_ids", chat, fill(head + ',"allowed_token_ids":[', "17", "]}")
    yield "logit_bias, 49 000", chat, json.dumps({**user, "logit_bias": {str(n): 1 for n in range(49_000)}}).encode()
    yield "prompt of ids", "/v1/completions", fill('{"prompt":[', "17", "]}")
    yield "prompts, 1024", "/v1/completions", json.dumps({"prompt": ["a"] * 1024, "max_tokens": 1}).encode()
    scored = {"prompt": [100 + number % 1000 for number in range(4000)], "max_tokens": 1}
    yield "prompt_logprobs, 20", "/v1/completions", json.dumps({**scored, "prompt_logprobs": 20}).encode()
    yield "echo, logprobs 20", "/v1/completions", json.dumps({**scored, "echo": True, "logprobs": 20}).encode()
    sampled = {"prompt": ["a"] * 64, "max_tokens": 100, "ignore_eos": True}
    yield "64 choices, logprobs 20", "/v1/completions", json.dumps({**sampled, "logprobs": 20}).encode()
    yield "input items", "/v1/responses", fill('{"input":[', message, "]}")
    yield "input items, 8192", "/v1/responses", f'{{"max_output_tokens":1,"input":[{",".join([message] * 8192)}]}}'.encode()
    yield "tokens", "/detokenize", fill('{"tokens":[', "17", "]}")
    yield "digits", "/tokenize", b'{"prompt":"' + b"7" * (MAX_BODY_BYTES - 13) + b'"}'


def send(netloc: str, path: str, body: bytes) -> int:
    """POST a body; the status of the answer."""
    connection = http.client.HTTPConnection(netloc, timeout=120)
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    response.read()
    return response.status


def longest_wait_ms(netloc: str, sender: multiprocessing.pool.AsyncResult[int] | None, quiet_s: float = 1.0) -> float:
    """The longest round trip of /live until `sender` has its answer, or for a while."""
    connection, longest, start = http.client.HTTPConnection(netloc), 0.0, time.perf_counter()
    while not sender.ready() if sender is not None else time.perf_counter() - start < quiet_s:
        began = time.perf_counter()
        connection.request("GET", "/live")
        connection.getresponse().read()
        longest = max(longest, time.perf_counter() - began)
    return longest * 1000


def main() -> None:
    netloc = urlsplit(sys.argv[1]).netloc
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(f"{'quiet':24} {longest_wait_ms(netloc, None):8.1f} ms")
        for name, path, body in bodies():
            waits = []
            for _ in range(TRIES):
                sender = pool.apply_async(send, (netloc, path, body))
                waits.append(longest_wait_ms(netloc, sender))
            print(f"{name:24} {min(waits):8.1f} ms  {path} {len(body) / 1e6:.1f} MB -> {sender.get()}", flush=True)


if __name__ == "__main__":
    main()

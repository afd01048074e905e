"""`python -m loadtest.hang_ups`: clients that hang up at any moment leave nothing. Needs nothing but the server.

Seeded: over SSE, plain requests and WebSockets, in the middle of what they send or after some time, with a reset or without.
Prints what the server holds before and after; exits with 1 when sequences, blocks or descriptors are not what they were.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import struct
import sys
import time
import urllib.request
from contextlib import suppress
from random import Random
from typing import NamedTuple
from urllib.parse import urlsplit

from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from loadtest.processes import family, resident_bytes
from loadtest.run import serving

WARM_UP, SETTLE_S, IDLE_KEEP_ALIVE_S = 500, 90.0, 8.0
LINGER_RESET = struct.pack("ii", 1, 0)


class Held(NamedTuple):
    """What a server holds: all of it must go with its clients, but for some memory."""

    sequences: float
    kv_usage: float
    descriptors: int
    threads: int
    megabytes: int


def main() -> int:
    """Hang up on a server of its own; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=20_000)
    parser.add_argument("--clients", type=int, default=32, help="at a time")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with serving("--kv-cache-memory", "256M", "--max-num-seqs", "32", "--max-model-len", "1024") as (url, pid):
        asyncio.run(_hang_up(url, WARM_UP, arguments.clients, Random(-1)))
        before = _settled(url, pid, None)
        started = time.perf_counter()
        asyncio.run(_hang_up(url, arguments.count, arguments.clients, Random(arguments.seed)))
        seconds = time.perf_counter() - started
        after = _settled(url, pid, before)
    print(f"{arguments.count} hang-ups in {seconds:.0f} s")
    for name, one, other in zip(Held._fields, before, after, strict=True):
        print(f"{name:12} {one:g} -> {other:g}")
    return 0 if after[:4] == before[:4] else 1


async def _hang_up(url: str, count: int, clients: int, rng: Random) -> None:
    numbers = iter(range(count))

    async def client(rng: Random) -> None:
        for _ in numbers:
            kind = rng.choice((_leave_request, _leave_request, _leave_socket))
            try:
                await kind(url, rng)
            except (OSError, ConnectionClosed, asyncio.IncompleteReadError):
                # The server may be the first to close what it can't read.
                continue

    await asyncio.gather(*(client(Random(rng.random())) for _ in range(clients)))


async def _leave_request(url: str, rng: Random) -> None:
    """Ask for a stream or a whole answer; leave in the middle of the request, or some time after it."""
    address = urlsplit(url)
    fields = _fields(rng) | {"stream": rng.random() < 0.7}
    body = json.dumps(fields).encode()
    request = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    reader, writer = await asyncio.open_connection(address.hostname, address.port)
    try:
        is_whole = rng.random() < 0.85
        writer.write(request if is_whole else request[: rng.randrange(len(request))])
        await writer.drain()
        await asyncio.sleep(rng.expovariate(20))
        if rng.random() < 0.5:
            with suppress(TimeoutError):
                await asyncio.wait_for(reader.read(rng.randrange(1, 2000)), 2)
    finally:
        if rng.random() < 0.5:
            _reset_on_close(writer)
        writer.transport.abort()


async def _leave_socket(url: str, rng: Random) -> None:
    """Begin streams on a WebSocket; leave without a closing handshake, mostly."""
    socket_url = url.replace("http://", "ws://") + "/v1/ws"
    async with connect(socket_url, open_timeout=10, close_timeout=1, proxy=None) as connection:
        for number in range(rng.randrange(1, 4)):
            fields = {"type": "completion.create", "stream_id": str(number), "resumable": rng.random() < 0.1}
            await connection.send(json.dumps(fields | _fields(rng)))
        await asyncio.sleep(rng.expovariate(20))
        if rng.random() < 0.9:
            connection.transport.abort()


def _fields(rng: Random) -> dict[str, object]:
    return {"prompt": _prompt(rng), "max_tokens": rng.randrange(1, 200), "ignore_eos": True, "n": rng.choice((1, 1, 2))}


def _prompt(rng: Random) -> str:
    return f"{rng.randrange(1000)}: " + "once upon a time " * rng.randrange(1, 12)


def _reset_on_close(writer: asyncio.StreamWriter) -> None:
    raw: socket.socket = writer.get_extra_info("socket")
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)


def _settled(url: str, pid: int, expected: Held | None) -> Held:
    """What the server holds once that is what is expected, or after `SETTLE_S`."""
    if expected is None:
        time.sleep(IDLE_KEEP_ALIVE_S)
    deadline = time.monotonic() + SETTLE_S
    while True:
        held = _held(url, pid)
        if time.monotonic() > deadline or (expected is None and not held.sequences) or (expected and held[:4] == expected[:4]):
            return held
        time.sleep(0.5)


def _held(url: str, pid: int) -> Held:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        text = response.read().decode()
    samples = [line.rsplit(" ", 1) for line in text.splitlines() if line.startswith("vllm:")]
    values = {sample.split("{")[0]: float(value) for sample, value in samples}
    pids = list(family(pid))
    return Held(
        values["vllm:num_requests_running"] + values["vllm:num_requests_waiting"],
        values["vllm:kv_cache_usage_perc"],
        sum(len(os.listdir(f"/proc/{each}/fd")) for each in pids),
        sum(len(os.listdir(f"/proc/{each}/task")) for each in pids),
        round(sum(resident_bytes(pid).values()) / 1e6),
    )


if __name__ == "__main__":
    sys.exit(main())

"""`python -m loadtest.readers`: what readers that are slow, or never read, cost the others. Needs nothing but the server.

Streams start together, in turn with readers among them that lag and with as many that read; three times each. Prints the gaps
between two pieces of text that those who read see, and how the memory of the server grew.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import statistics
import sys
import time
from urllib.parse import urlsplit

from loadtest.percentile import p99
from loadtest.run import serving

NUM_READING, NUM_SLOW, NUM_NEVER, ROUNDS, MAX_TOKENS = 48, 8, 8, 3, 64


def main() -> None:
    """Run both ways in turn; print their figures."""
    with serving("--kv-cache-memory", "1G", "--max-num-seqs", "64", "--max-model-len", "1024") as (url, pid):
        asyncio.run(_round(url, 8, 0, 0))
        alone, beside, memory = [], [], [_resident_bytes(pid)]
        for _ in range(ROUNDS):
            beside += asyncio.run(_round(url, NUM_READING, NUM_SLOW, NUM_NEVER))
            memory.append(_resident_bytes(pid))
            alone += asyncio.run(_round(url, NUM_READING + NUM_SLOW + NUM_NEVER, 0, 0))
    tails = [p99(gaps) or 0.0 for gaps in (alone, beside)]
    names = ("beside others that read", f"beside {NUM_SLOW} slow and {NUM_NEVER} that never read")
    for name, gaps, tail in zip(names, (alone, beside), tails, strict=True):
        print(f"{name}: {len(gaps)} gaps, median {statistics.median(gaps) * 1e3:.1f} ms, p99 {tail * 1e3:.1f} ms")
    print(f"p99 beside those against beside others that read: {tails[1] / tails[0] - 1:+.1%}")
    print("memory of the first process, MB: " + " → ".join(f"{size / 1e6:.0f}" for size in memory))


async def _round(url: str, num_reading: int, num_slow: int, num_never: int) -> list[float]:
    """The gaps of those that read, of one crowd of streams."""
    loop = asyncio.get_running_loop()
    absent = [loop.create_task(_lag(url, interval_s)) for interval_s in [1.0] * num_slow + [3600.0] * num_never]
    gaps = await asyncio.gather(*(_read(url, number) for number in range(num_reading)))
    for task in absent:
        task.cancel()
    await asyncio.gather(*absent, return_exceptions=True)
    return [gap for each in gaps for gap in each]


async def _read(url: str, number: int) -> list[float]:
    """Read a stream as it comes; the gaps between its pieces, its first one left out."""
    reader, writer = await asyncio.open_connection(sock=await _asked(url, number))
    gaps, last, rest = [], 0.0, b""
    while not rest.endswith(b"data: [DONE]\n\n\r\n"):
        data = await asyncio.wait_for(reader.read(65536), 120)
        if not data:
            break
        now, rest = time.perf_counter(), (rest + data)[-64:]
        if b"data: " in data:
            gaps.append(now - last)
            last = now
    writer.close()
    return gaps[2:-1]


async def _lag(url: str, interval_s: float) -> None:
    """Read a byte every so often, with as little room in the kernel as it grants."""
    connection = await _asked(url, -1, receive_buffer=2048)
    with contextlib.closing(connection):
        while True:
            await asyncio.sleep(interval_s)
            await asyncio.get_running_loop().sock_recv(connection, 1)


async def _asked(url: str, number: int, *, receive_buffer: int | None = None) -> socket.socket:
    """A connection on which a stream has been requested."""
    address = urlsplit(url)
    connection = socket.socket()
    connection.setblocking(False)
    if receive_buffer is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(connection, (address.hostname, address.port))
    fields = {"prompt": f"{number}: once upon a time", "max_tokens": MAX_TOKENS, "ignore_eos": True, "stream": True}
    body = json.dumps(fields).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n\r\n"
    await loop.sock_sendall(connection, head.encode() + body)
    return connection


def _resident_bytes(pid: int) -> int:
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())

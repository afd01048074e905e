"""What a streamed token costs the API side: server CPU per event, from the engine's delta to the socket, detokenising included.

    python benchmarks/sse_cost.py --streams 64 --tokens 300

The real server on one core, a client that only drains its sockets on another, and in place of an engine a loop that hands every
stream a token per step. The cores should be quiet and not two threads of one.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import socket
import statistics
import sys
import time
from typing import Any

import anyio
import uvloop

from streamserve.checkpoint.names import resolve
from streamserve.engine.base import SequenceStream
from streamserve.engine.stream import StreamLimits
from streamserve.engine.stream_table import StreamTable
from streamserve.errors import QueueFull
from streamserve.frontend import Frontend
from streamserve.server.app import create_app
from streamserve.server.config import ServerConfig
from streamserve.server.http.connections.listen import Listen
from streamserve.server.http.connections.server import http_server
from streamserve.server.service import Service
from streamserve.server.ws.protocol import SocketProtocol
from streamserve.text.tokenizers.tokenizer import load_tokenizer
from streamserve.types import EngineInfo, EngineSnapshot, EngineStats, Quotas, SequenceSpec, Tenant, TokenDelta

TEXT = "The quick brown fox jumps over the lazy dog while many other animals watch it from the hill. "
BODY = json.dumps({"prompt": "a", "stream": True, "max_tokens": 4000}).encode()
REQUEST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s" % (len(BODY), BODY)


class StepEngine:
    """Admits streams and gives each a token per step; `full` once there are `num_streams`."""

    def __init__(self, vocab_size: int, num_streams: int) -> None:
        self.info = EngineInfo(
            model="steps", architecture="none", dtype="none", kv_cache_dtype="none", device="none", max_model_len=8192,
            vocab_size=vocab_size, num_blocks=1, block_size=16, max_num_seqs=1024,
        )  # fmt: skip
        self.full = anyio.Event()
        self._num_streams = num_streams
        self._sequence_ids: list[str] = []
        self._streams = StreamTable(self, StreamLimits())

    async def start(self) -> EngineInfo:
        return self.info

    async def open(self, specs: list[SequenceSpec]) -> list[SequenceStream]:
        self._sequence_ids += [spec.sequence_id for spec in specs]
        if len(self._sequence_ids) == self._num_streams:
            self.full.set()
        return list(self._streams.add(specs))

    def refusal(self, tenant: Tenant) -> QueueFull | None:
        return None

    def quotas(self, tenant: Tenant) -> Quotas | None:
        return None

    async def stats(self) -> EngineStats:
        return EngineStats()

    async def snapshots(self) -> list[EngineSnapshot]:
        return [EngineSnapshot(self.info, await self.stats())]

    async def stop(self) -> None:
        self._sequence_ids.clear()

    def step(self, token_id: int, *, is_last: bool) -> None:
        reason = "length" if is_last else None
        self._streams.deliver([(name, TokenDelta([token_id], finish_reason=reason)) for name in self._sequence_ids])  # type: ignore[arg-type]

    def pause(self, sequence_id: str) -> None:
        """A reader lags; the steps go on."""

    def resume(self, sequence_id: str) -> None:
        """A reader has caught up."""

    def abort(self, sequence_id: str) -> bool:
        return False


async def measure(streams: int, tokens: int) -> float:
    """Microseconds of this process's CPU per event, over sockets."""
    tokenizer = load_tokenizer(resolve("demo"))
    token_ids = tokenizer.encode(TEXT)
    engine = StepEngine(tokenizer.vocab_size, streams)
    service = Service(ServerConfig(model_names=["steps"]))
    service.attach(Frontend(engine, tokenizer), {})
    server = http_server(
        create_app(service),
        Listen(access_log=False, log_level="error"),
        websocket_protocol=SocketProtocol,
        shutdown_timeout_s=1,
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(server.serve, [listening])
            await server.listening.wait()
            client = await anyio.open_process(
                [sys.executable, __file__, "--client", str(listening.getsockname()[1]), str(streams)], stdout=None, stderr=None
            )
            await engine.full.wait()
            await anyio.sleep(0.2)
            before = time.process_time()
            for step in range(tokens):
                engine.step(token_ids[step % len(token_ids)], is_last=step == tokens - 1)
                await asyncio.sleep(0)
                await asyncio.sleep(0.0005)
            await service.delivery.active_requests.wait_idle()
            spent = time.process_time() - before
            await client.wait()
            server.should_exit = True
    return spent / (streams * tokens) * 1e6


class Counting(asyncio.Protocol):
    """Sends one request and waits for the end of the connection."""

    def __init__(self) -> None:
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        transport.write(REQUEST)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended.set_result(None)


async def read(port: int, streams: int) -> None:
    """The client: every stream to its end."""
    loop = asyncio.get_running_loop()
    made = [(await loop.create_connection(Counting, "127.0.0.1", port))[1] for _ in range(streams)]
    await asyncio.gather(*(protocol.ended for protocol in made))


def pin(core: int) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core % len(cores)]})


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        # Started by a server that is pinned already, whose core it would inherit.
        os.sched_setaffinity(0, range(os.cpu_count() or 1))
        pin(1)
        uvloop.run(read(int(sys.argv[2]), int(sys.argv[3])))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=300)
    parser.add_argument("--runs", type=int, default=3)
    arguments = parser.parse_args()
    pin(0)
    runs = [uvloop.run(measure(arguments.streams, arguments.tokens)) for _ in range(arguments.runs)]
    print(f"{arguments.streams} streams x {arguments.tokens} tokens: median {statistics.median(runs):.1f} us/event "
          f"({', '.join(f'{run:.1f}' for run in runs)})")  # fmt: skip


if __name__ == "__main__":
    main()

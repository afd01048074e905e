"""A closed loop of streamed requests from several processes, so that the clients are not what is measured.

Each process keeps its share of the streams in flight: when one ends the next begins. The processes start together.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from typing import Any
from urllib.parse import urlsplit

import uvloop

from streamserve.bench.measures import milliseconds, percentile
from streamserve.bench.stream_client import StreamTimes, stream_once
from streamserve.bench.workloads import Span, words
from streamserve.errors import ConfigError

RANDOM_TOKEN_IDS = (1000, 10000)
"""Ids for prompts of token ids: within any vocabulary, clear of special tokens."""
STREAMS_PER_PROCESS = 16
PROCESS_START_TIMEOUT_S = 120.0


@dataclass(frozen=True, kw_only=True)
class Load:
    """Which requests to send to which server.

    concurrency    streams in flight, all processes together
    num_requests   requests in all
    input_len      tokens of a prompt when `token_ids`, else words; after its prefix
    prefix_len     tokens or words that a prompt begins with, the same in all that have the same prefix
    num_prefixes   prefixes there are; each prompt has one of them
    chat           `/v1/chat/completions` instead of `/v1/completions`
    body           merged into every request's body; None removes a field
    requires_done  an answer without `[DONE]` is a failure
    """

    base_url: str
    model: str
    concurrency: int
    num_requests: int
    input_len: Span
    output_len: Span
    prefix_len: int = 0
    num_prefixes: int = 1
    processes: int | None = None
    chat: bool = False
    token_ids: bool = False
    temperature: float = 0.0
    seed: int = 0
    api_key: str | None = None
    body: dict[str, Any] = field(default_factory=dict)
    requires_done: bool = True
    timeout_s: float = 600.0

    def __post_init__(self) -> None:
        if self.chat and self.token_ids:
            raise ConfigError("--token-ids with --chat: a chat message is text; leave one of them out")
        if urlsplit(self.base_url).scheme != "http":
            raise ConfigError(f"--base-url {self.base_url}: must begin with http://")

    @property
    def num_processes(self) -> int:
        return self.processes or max(1, min(8, self.concurrency // STREAMS_PER_PROCESS))

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.base_url)
        return parts.hostname or "127.0.0.1", parts.port or 80

    def share(self, total: int, process: int) -> int:
        """How many of `total` fall to one process."""
        return total // self.num_processes + (process < total % self.num_processes)


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """A request's bytes, and how many tokens it requests."""

    data: bytes
    output_len: int


def requests(load: Load, process: int) -> Iterator[HttpRequest]:
    """The requests of one process, the same for the same seed."""
    rng = random.Random(load.seed * 1000 + process)
    for _ in range(load.share(load.num_requests, process)):
        output_len = load.output_len.draw(rng)
        yield HttpRequest(_http(load, _body(load, rng, output_len)), output_len)


def _body(load: Load, rng: random.Random, output_len: int) -> dict[str, Any]:
    prefix_rng = random.Random(f"{load.seed}/{rng.randrange(load.num_prefixes)}")
    prompt: str | list[int]
    if load.token_ids:
        prompt = [*_token_ids(load.prefix_len, prefix_rng), *_token_ids(load.input_len.draw(rng), rng)]
    else:
        prompt = " ".join([*words(load.prefix_len, prefix_rng), *words(load.input_len.draw(rng), rng)])
    body: dict[str, Any] = {
        "model": load.model,
        "max_tokens": output_len,
        "temperature": load.temperature,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    body |= {"messages": [{"role": "user", "content": prompt}]} if load.chat else {"prompt": prompt}
    return {name: value for name, value in (body | load.body).items() if value is not None}


def _token_ids(count: int, rng: random.Random) -> list[int]:
    return [rng.randrange(*RANDOM_TOKEN_IDS) for _ in range(count)]


def _http(load: Load, body: dict[str, Any]) -> bytes:
    data = json.dumps(body).encode()
    root = urlsplit(load.base_url).path.rstrip("/").removesuffix("/v1")
    lines = [
        f"POST {root}/v1/{'chat/' if load.chat else ''}completions HTTP/1.1",
        f"Host: {urlsplit(load.base_url).netloc}",
        "Content-Type: application/json",
        f"Content-Length: {len(data)}",
        "Connection: close",
    ]
    if load.api_key:
        lines.append(f"Authorization: Bearer {load.api_key}")
    return "\r\n".join([*lines, "", ""]).encode() + data


@dataclass(frozen=True, slots=True)
class RequestResult:
    """How one request went, and how many tokens it requested."""

    times: StreamTimes
    output_len: int


def run_load(load: Load) -> list[RequestResult]:
    """Run the whole load; blocks until every request has ended. Raises `ConfigError` when a client process dies."""
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(load.num_processes)
    pipes = [context.Pipe(duplex=False) for _ in range(load.num_processes)]
    workers = [
        context.Process(target=_process, args=(load, index, barrier, sender), daemon=True)
        for index, (_, sender) in enumerate(pipes)
    ]
    for worker in workers:
        worker.start()
    for _, sender in pipes:
        sender.close()
    try:
        return [result for receiver, _ in pipes for result in receiver.recv()]
    except EOFError as error:
        raise ConfigError("a load process ended early; see its output above") from error
    finally:
        for worker in workers:
            worker.join(10)
            worker.kill()


def _process(load: Load, index: int, barrier: Barrier, sender: Connection) -> None:
    sender.send(uvloop.run(_streams(load, index, barrier)))
    sender.close()


async def _streams(load: Load, index: int, barrier: Barrier) -> list[RequestResult]:
    pending = iter(list(requests(load, index)))
    host, port = load.address
    results: list[RequestResult] = []

    async def one_after_another() -> None:
        for request in pending:
            times = await stream_once(host, port, request.data, requires_done=load.requires_done, timeout_s=load.timeout_s)
            results.append(RequestResult(times, request.output_len))

    barrier.wait(PROCESS_START_TIMEOUT_S)
    await asyncio.gather(*(one_after_another() for _ in range(load.share(load.concurrency, index))))
    return results


def summary(load: Load, results: list[RequestResult], *, tag: str = "") -> dict[str, Any]:
    """The figures of one load. Times in milliseconds; rates over the wall time from the first request to the last answer.

    tok_s           completion tokens per second, by the server's own count
    events_per_tok  1.0 when every token came in an event of its own
    short           answers with another number of tokens than requested
    """
    good = [result.times for result in results if not result.times.failure]
    starts, ends = [result.times.started_s for result in results], [result.times.ended_s for result in results]
    seconds = max(ends) - min(starts) if results else 0.0
    tokens = sum(times.completion_tokens for times in good)
    gaps = [gap for times in good for gap in times.gaps_s]
    tpots = [times.tpot_s for times in good if times.tpot_s is not None]
    failures = sorted({result.times.failure for result in results if result.times.failure})
    return {
        "tag": tag,
        "c": load.concurrency,
        "n": load.num_requests,
        "i": load.input_len.as_json(),
        "o": load.output_len.as_json(),
        "ok": len(good),
        "failed": len(results) - len(good),
        "short": sum(not r.times.failure and r.times.completion_tokens != r.output_len for r in results),
        "why": failures[:4],
        "s": round(seconds, 3),
        "tok_s": round(tokens / seconds, 1) if seconds else 0.0,
        "events_per_tok": round(sum(times.events for times in good) / max(1, tokens), 3),
        "req_s": round(len(good) / seconds, 2) if seconds else 0.0,
        "prompt_tokens": sum(times.prompt_tokens for times in good),
        "ttft_p50": milliseconds(percentile([times.ttft_s for times in good], 0.5)),
        "ttft_p99": milliseconds(percentile([times.ttft_s for times in good], 0.99)),
        "gap_p50": milliseconds(percentile(gaps, 0.5)),
        "gap_p99": milliseconds(percentile(gaps, 0.99)),
        "tpot_p50": milliseconds(percentile(tpots, 0.5)),
        "e2e_p50": milliseconds(percentile([times.e2e_s for times in good], 0.5)),
        "e2e_p99": milliseconds(percentile([times.e2e_s for times in good], 0.99)),
    }

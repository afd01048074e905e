"""Two real replicas: how long their steps take under even loads, and what requests at random get from them.

A client over HTTP, on an event loop of its own. Sends the very requests that a simulation with the same seed does, as it does.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Iterable, Sequence
from random import Random
from statistics import median

import msgspec

from benchmarks.scaling.requests import conversations, texts
from benchmarks.scaling.simulation import Outcome, Scenario
from benchmarks.scaling.step_time import Calibration, DecodeStep
from streamserve.bench.stream_client import StreamTimes, stream_once

VOCABULARY = 40000
SHORT, LONG = 16, 272
"""Tokens of the prompts that tell what a prompt token costs."""

ROWS = (1, 4, 8)
OUTPUT_TOKENS = 24
SETTLE_TOKENS = 6
"""First tokens of an answer that are left out: others' prompts are computed beside them."""


class RealReplicas:
    """A server of some replicas on this machine.

    num_replicas  that it has, one engine each
    """

    def __init__(self, port: int, num_replicas: int) -> None:
        self._port = port
        self._num_replicas = num_replicas
        self._fresh = itertools.count(1)

    async def calibrate(self) -> Calibration:
        """Measure steps while every replica has as many rows."""
        await self._together(1, SHORT)
        decode = [DecodeStep(rows, SHORT + OUTPUT_TOKENS // 2, await self._step_ms(rows, SHORT)) for rows in ROWS]
        rows, context = ROWS[1], LONG - SHORT
        context_ns = max(0.0, (await self._step_ms(rows, LONG) - decode[1].ms) / (rows * context) * 1e6)
        short_ms, long_ms = [await self._ttft_ms(tokens) for tokens in (SHORT, LONG)]
        prompt_us = (long_ms - short_ms) / (LONG - SHORT) * 1e3
        overhead_ms = max(0.0, short_ms - max(decode[0].ms, SHORT * prompt_us / 1e3))
        return Calibration(
            source="benchmarks/scaling_check.py",
            gpus=0,
            decode=decode,
            prompt_us=prompt_us,
            context_ns=context_ns,
            kv_tokens=8192,
            overhead_ms=overhead_ms,
        )

    async def serve(self, scenario: Scenario) -> Outcome:
        """Send a scenario's requests, which must be one of a conversation each."""
        loop = asyncio.get_running_loop()
        began_at, sent = loop.time(), 0.0
        streams: list[tuple[float, asyncio.Task[StreamTimes]]] = []
        for after_s, applications, random in conversations(scenario.traffic, scenario.rate, scenario.seed):
            sent += after_s
            if sent > scenario.duration_s:
                break
            prompt, whole = next(texts(scenario.traffic, applications, random))
            await asyncio.sleep(began_at + sent - loop.time())
            streams.append((sent, asyncio.create_task(self._stream(prompt, len(whole) - len(prompt)))))
        times = [(at_s, await stream) for at_s, stream in streams]
        return _outcome(
            scenario,
            [each for at_s, each in times if at_s >= scenario.warmup_s],
            began_at_s=times[0][1].started_s - times[0][0],
        )

    async def _step_ms(self, rows: int, prompt_tokens: int) -> float:
        """The median time between two tokens while each replica decodes so many rows."""
        streams = await self._together(rows, prompt_tokens)
        return median(gap for stream in streams for gap in stream.gaps_s[SETTLE_TOKENS:]) * 1e3

    async def _ttft_ms(self, prompt_tokens: int) -> float:
        """The median time to the first token of a prompt that each replica gets when it is idle."""
        return median([stream.ttft_s for _ in range(3) for stream in await self._together(1, prompt_tokens, 2)]) * 1e3

    async def _together(self, rows: int, prompt_tokens: int, output_tokens: int = OUTPUT_TOKENS) -> list[StreamTimes]:
        """So many new prompts for each replica at once."""
        prompts = [
            Random(next(self._fresh)).choices(range(VOCABULARY), k=prompt_tokens) for _ in range(rows * self._num_replicas)
        ]
        return await asyncio.gather(*(self._stream(prompt, output_tokens) for prompt in prompts))

    async def _stream(self, prompt: Sequence[int], output_tokens: int) -> StreamTimes:
        body = {
            "prompt": [token % VOCABULARY for token in prompt],
            "max_tokens": output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        content = json.dumps(body).encode()
        headers = f"Host: 127.0.0.1:{self._port}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        head = f"POST /v1/completions HTTP/1.1\r\n{headers}Content-Length: {len(content)}\r\n\r\n"
        request = head.encode() + content
        times = await stream_once("127.0.0.1", self._port, request, requires_done=True, timeout_s=120.0)
        if times.failure:
            raise RuntimeError(f"a request failed: {times.failure}")
        return times


def mean_of(one: Calibration, other: Calibration) -> Calibration:
    """The calibration halfway between two of the same rows."""
    return msgspec.structs.replace(
        one,
        decode=[DecodeStep(a.rows, a.context, (a.ms + b.ms) / 2) for a, b in zip(one.decode, other.decode, strict=True)],
        prompt_us=(one.prompt_us + other.prompt_us) / 2,
        context_ns=(one.context_ns + other.context_ns) / 2,
        overhead_ms=(one.overhead_ms + other.overhead_ms) / 2,
    )


def _outcome(scenario: Scenario, streams: Iterable[StreamTimes], *, began_at_s: float) -> Outcome:
    """The figures of a simulation, of real streams; what is not visible from outside is not a number."""
    streams = list(streams)
    ended = [stream for stream in streams if stream.ended_s <= began_at_s + scenario.duration_s]
    return Outcome(
        ttft_s=[stream.ttft_s for stream in streams],
        gap_s=[stream.tpot_s for stream in ended if stream.tpot_s is not None],
        num_rejected=0,
        output_tokens_per_s=sum(stream.completion_tokens for stream in ended) / (scenario.duration_s - scenario.warmup_s),
        cached=float("nan"),
        imbalance=float("nan"),
    )

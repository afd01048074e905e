"""More than a server can do: what it does then, who is told what, and how one key fares beside another.

    python -m loadtest.overload --seconds 60

Starts a server of the demo model with two keys, `greedy` and `polite`, finds out how many requests a second it answers, sends
ten times as many for a while from clients that give up after ten seconds, and then measures the time to the first token of
`polite` by itself and while `greedy` asks for far more than there is room for. Exits with 1 when a figure misses its target.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import httpx

PATIENCE_S = 10.0
TIMES = 10
LEAST_GOODPUT, MOST_TTFT = 0.9, 2.0
SERVER = (
    *("--max-num-seqs", "4", "--max-num-batched-tokens", "64", "--max-model-len", "1024", "--kv-cache-memory", "64M"),
    *("--enforce-eager", "--prefix-cache-per-key", "--uvicorn-log-level", "warning"),
)

ANSWERED, REFUSED, GAVE_UP, FAILED = "answered", "refused", "gave up", "failed"
"""What becomes of a request: 429 is a refusal, and only what its client never hears of is given up."""


def keys_file() -> str:
    """The keys that the load uses."""
    return json.dumps([{"name": name, "sha256": sha256(name.encode()).hexdigest()} for name in ("greedy", "polite")])


@dataclass
class Client:
    """Sends requests with one key."""

    base_url: str
    key: str
    http: httpx.AsyncClient

    async def complete(self, *, max_tokens: int = 80, n: int = 1, prompt: str = "The harbour town") -> str:
        """Have a prompt completed; what became of it.

        max_tokens  so many that to ask ten times as often as the server answers takes little of the processors that both share
        """
        body = {"prompt": prompt, "max_tokens": max_tokens, "n": n, "ignore_eos": True}
        try:
            async with asyncio.timeout(PATIENCE_S):
                response = await self.http.post(f"{self.base_url}/v1/completions", json=body, headers=self._headers())
        except TimeoutError:
            return GAVE_UP
        except httpx.HTTPError:
            return FAILED
        return {200: ANSWERED, 429: REFUSED}.get(response.status_code, FAILED)

    async def first_token_s(self) -> float:
        """Seconds until the first event of a short stream; infinite when there is none."""
        body = {"prompt": "Why is the sky", "max_tokens": 2, "stream": True, "ignore_eos": True}
        start = time.perf_counter()
        async with self.http.stream("POST", f"{self.base_url}/v1/completions", json=body, headers=self._headers()) as response:
            async for line in response.aiter_lines():
                if line.startswith("data: {") and '"error"' not in line:
                    return time.perf_counter() - start
        return float("inf")

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.key}"}


async def capacity(client: Client, seconds: float, *, concurrency: int = 8) -> float:
    """Requests answered a second while there are always some more waiting."""
    until, fates = time.perf_counter() + seconds, Counter[str]()

    async def send() -> None:
        while time.perf_counter() < until:
            fates[await client.complete()] += 1

    start = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(concurrency)))
    return fates[ANSWERED] / (time.perf_counter() - start)


async def offer(client: Client, per_second: float, seconds: float) -> Counter[str]:
    """Send so many requests a second, whatever becomes of them; how many met which fate."""
    fates: Counter[str] = Counter()
    tasks: set[asyncio.Task[None]] = set()

    async def send() -> None:
        fates[await client.complete()] += 1

    start = time.perf_counter()
    for number in range(int(per_second * seconds)):
        await asyncio.sleep(max(0.0, start + number / per_second - time.perf_counter()))
        task = asyncio.create_task(send())
        tasks.add(task)
        task.add_done_callback(tasks.discard)
    await asyncio.gather(*tasks)
    return fates


async def first_tokens(client: Client, seconds: float, *, pause_s: float = 0.05) -> list[float]:
    """Times to the first token of one request after another."""
    until, times = time.perf_counter() + seconds, []
    while time.perf_counter() < until:
        times.append(await client.first_token_s())
        await asyncio.sleep(pause_s)
    return times


async def beside(greedy: Client, measure: Callable[[], asyncio.Future[list[float]]]) -> list[float]:
    """What `measure` measures while another key asks for far more than there is."""
    stop = asyncio.Event()

    async def ask() -> None:
        while not stop.is_set():
            if await greedy.complete(max_tokens=64, n=16, prompt="Once upon a time " * 40) != ANSWERED:
                await asyncio.sleep(0.5)

    tasks = [asyncio.create_task(ask()) for _ in range(16)]
    await asyncio.sleep(2.0)
    try:
        return await measure()
    finally:
        stop.set()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def p99(times: list[float]) -> float:
    """The 99th percentile of some times."""
    return statistics.quantiles(times, n=100)[98] if len(times) > 1 else times[0]


@contextmanager
def server(*arguments: str) -> Iterator[str]:
    """A server of the demo model with both keys; its base URL."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "keys.json"
        path.write_text(keys_file())
        command = [sys.executable, "-m", "streamserve", "serve", "--model", "demo", "--port", "0", "--host", "127.0.0.1"]
        process = subprocess.Popen(
            [*command, "--api-keys-file", str(path), *SERVER, *arguments],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        assert process.stderr is not None
        try:
            for line in process.stderr:
                if "Ready: " in line:
                    yield line.split("Ready: ")[1].split()[0]
                    break
        finally:
            process.terminate()
            process.communicate()


async def study(base_url: str, seconds: float) -> bool:
    """Run it all and print what came of it; whether every figure is as it should be."""
    async with httpx.AsyncClient(timeout=None, limits=httpx.Limits(max_connections=None, keepalive_expiry=2.0)) as http:
        greedy, polite = Client(base_url, "greedy", http), Client(base_url, "polite", http)
        await capacity(greedy, min(seconds, 10.0))  # what is slow the first time
        peak = await capacity(greedy, min(seconds, 20.0))
        print(f"capacity: {peak:.1f} requests a second", flush=True)
        fates = await offer(greedy, TIMES * peak, seconds)
        goodput = fates[ANSWERED] / seconds
        told = ", ".join(f"{count} {fate}" for fate, count in fates.most_common())
        print(f"{TIMES} times that for {seconds:g} s: {told}; {goodput:.1f} a second, {goodput / peak:.0%}", flush=True)
        alone = await first_tokens(polite, min(seconds, 20.0))
        crowded = await beside(greedy, lambda: asyncio.ensure_future(first_tokens(polite, min(seconds, 20.0))))
        ratio = p99(crowded) / p99(alone)
        times = f"{p99(alone) * 1e3:.0f} ms alone, {p99(crowded) * 1e3:.0f} ms beside a greedy key"
        print(f"first token, p99: {times}, {ratio:.2f} times")
        print(f"first token, median: {statistics.median(alone) * 1e3:.0f} ms and {statistics.median(crowded) * 1e3:.0f} ms")
        return goodput >= LEAST_GOODPUT * peak and not fates[FAILED] and ratio <= MOST_TTFT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    options, arguments = parser.parse_known_args()
    with server(*arguments) as base_url:
        sys.exit(not asyncio.run(study(base_url, options.seconds)))


if __name__ == "__main__":
    main()

"""More than a server can do: what it does then, who is told what, what refusals cost it, and how one key fares beside another.

    python -m loadtest.overload --seconds 60

Starts a server of the demo model with two keys, `greedy` and `polite`, finds out how many requests a second it answers, sends
ten times as many for a while from clients that give up after ten seconds, and then measures the time to the first token of
`polite` by itself and while `greedy` asks for far more than there is room for. Exits with 1 when a figure misses its target.

Clients say how long they wait, as SDKs do, unless they are `--silent`. Beside each figure stand the processor seconds that
the server's processes and this one used: on a machine that others use they say more than the clock.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from loadtest.percentile import p99
from loadtest.processes import processor_s
from loadtest.raw_client import RawClient

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


class Client:
    """Sends requests with one key; `patience_s` and `is_silent` as of `RawClient`."""

    def __init__(self, base_url: str, key: str, *, patience_s: float = PATIENCE_S, is_silent: bool = False) -> None:
        self._http = RawClient(base_url, key, patience_s=patience_s, is_silent=is_silent)

    async def complete(self, *, max_tokens: int = 80, n: int = 1, prompt: str = "The harbour town") -> str:
        """Have a prompt completed; what became of it.

        max_tokens  so many that to ask ten times as often as the server answers takes little of the processors that both share
        """
        body: dict[str, object] = {"prompt": prompt, "max_tokens": max_tokens, "n": n, "ignore_eos": True}
        try:
            status = await self._http.post("/v1/completions", body)
        except TimeoutError:
            return GAVE_UP
        except (OSError, asyncio.IncompleteReadError):
            return FAILED
        return {200: ANSWERED, 429: REFUSED}.get(status, FAILED)

    async def first_token_s(self) -> float:
        """Seconds until the first event of a short stream; infinite when there is none."""
        body: dict[str, object] = {"prompt": "Why is the sky", "max_tokens": 2, "stream": True, "ignore_eos": True}
        return await self._http.first_event_s("/v1/completions", body)

    async def close(self) -> None:
        await self._http.close()


class Work(NamedTuple):
    """Processor seconds of a while: of the server's processes by role, and of this one."""

    server: dict[str, float]
    client_s: float

    @property
    def server_s(self) -> float:
        return sum(self.server.values())

    def __str__(self) -> str:
        parts = ", ".join(f"{role} {seconds:.1f}" for role, seconds in sorted(self.server.items()))
        return f"processor seconds: {parts}, client {self.client_s:.1f}; load {os.getloadavg()[0]:.1f}"


@contextmanager
def work(pid: int) -> Iterator[Callable[[], Work]]:
    """Yields what tells how much the server with this process and this program have worked since."""
    before, own = processor_s(pid), time.process_time()
    yield lambda: Work(
        {role: seconds - before.get(role, 0.0) for role, seconds in processor_s(pid).items()}, time.process_time() - own
    )


async def capacity(base_url: str, seconds: float, *, concurrency: int = 8) -> float:
    """Requests answered a second while there are always some more waiting, of clients that don't give up."""
    client = Client(base_url, "greedy", patience_s=600.0)
    until, fates = time.perf_counter() + seconds, Counter[str]()

    async def send() -> None:
        while time.perf_counter() < until:
            fates[await client.complete()] += 1

    start = time.perf_counter()
    await asyncio.gather(*(send() for _ in range(concurrency)))
    await client.close()
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


@contextmanager
def server(*arguments: str) -> Iterator[tuple[str, int]]:
    """A server of the demo model with both keys; its base URL and process."""
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
                    yield line.split("Ready: ")[1].split()[0], process.pid
                    break
        finally:
            process.terminate()
            process.communicate()


async def study(base_url: str, pid: int, seconds: float, *, is_silent: bool = False) -> bool:
    """Run it all and print what came of it; whether every figure is as it should be."""
    greedy, polite = (Client(base_url, key, is_silent=is_silent) for key in ("greedy", "polite"))
    await capacity(base_url, min(seconds, 10.0))  # what is slow the first time
    with work(pid) as used:
        peak = await capacity(base_url, min(seconds, 20.0))
        at_peak = used()
    print(f"capacity: {peak:.1f} requests a second\n    {at_peak}", flush=True)
    with work(pid) as used:
        fates = await offer(greedy, TIMES * peak, seconds)
        overloaded = used()
    goodput = fates[ANSWERED] / seconds
    told = ", ".join(f"{count} {fate}" for fate, count in fates.most_common())
    print(f"{TIMES} times that for {seconds:g} s: {told}; {goodput:.1f} a second, {goodput / peak:.0%}\n    {overloaded}")
    num_at_peak = peak * min(seconds, 20.0)
    per_answer = at_peak.server["server"] / num_at_peak
    refusal_ms = (overloaded.server["server"] - per_answer * fates[ANSWERED]) / max(1, fates[REFUSED]) * 1e3
    share = (fates[ANSWERED] / overloaded.server_s) / (num_at_peak / at_peak.server_s)
    print(
        f"a refusal: {refusal_ms:.2f} ms of the server's processor; answers for its work: {share:.0%} of those at capacity",
        flush=True,
    )
    alone = await first_tokens(polite, min(seconds, 20.0))
    crowded = await beside(greedy, lambda: asyncio.ensure_future(first_tokens(polite, min(seconds, 20.0))))
    tails = [p99(times) or float("inf") for times in (alone, crowded)]
    ratio = tails[1] / tails[0]
    print(f"first token, p99: {tails[0] * 1e3:.0f} ms alone, {tails[1] * 1e3:.0f} ms beside a greedy key, {ratio:.2f} times")
    print(f"first token, median: {statistics.median(alone) * 1e3:.0f} ms and {statistics.median(crowded) * 1e3:.0f} ms")
    for client in (greedy, polite):
        await client.close()
    return goodput >= LEAST_GOODPUT * peak and not fates[FAILED] and ratio <= MOST_TTFT


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--silent", action="store_true", help="clients that do not say how long they wait")
    options, arguments = parser.parse_known_args()
    with server(*arguments) as (base_url, pid):
        sys.exit(not asyncio.run(study(base_url, pid, options.seconds, is_silent=options.silent)))


if __name__ == "__main__":
    main()

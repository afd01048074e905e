"""Real engines on timed devices behind the real router, and the clients of a scenario: what a simulation is held against.

On an event loop of its own; engines are processes. Everything is the server's but the device, the tokens and HTTP.
"""

from __future__ import annotations

import asyncio
import itertools
from array import array
from pathlib import Path
from random import Random

from benchmarks.scaling.requests import Applications, Traffic, conversations
from benchmarks.scaling.simulation import Outcome, Scenario
from streamserve.checkpoint.names import checkpoint_of
from streamserve.config import EngineConfig
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.replicas.replica_set import ReplicaSet
from streamserve.types import Sampling, SequenceSpec

MODEL = Path(__file__).resolve().parent.parent / "configs" / "Qwen3-8B"
EXECUTOR = "benchmarks.scaling.timed_executor:slow_h200"


class _Served:
    """One request as its client saw it; seconds of the loop's clock."""

    def __init__(self, sent_at: float, num_prompt_tokens: int) -> None:
        self.sent_at = sent_at
        self.num_prompt_tokens = num_prompt_tokens
        self.cached_tokens = 0
        self.first_token_at: float | None = None
        self.ended_at: float | None = None
        self.num_tokens = 0


async def serve(scenario: Scenario) -> Outcome:
    """Send a scenario's conversations to replicas that are started for it."""
    limits = scenario.limits
    config = EngineConfig(
        model=str(MODEL),
        load_format="dummy",
        max_num_seqs=limits.max_num_seqs,
        max_num_batched_tokens=limits.max_num_batched_tokens,
        max_queue=limits.max_queue,
    )
    checkpoint = checkpoint_of(config)
    processes = [EngineProcess(config, checkpoint, executor=EXECUTOR) for _ in range(scenario.num_replicas)]
    replicas = ReplicaSet([process.start() for process in processes], policy=scenario.routing.policy)
    try:
        await replicas.start()
        return await _Clients(replicas, scenario).run()
    finally:
        await replicas.stop()
        for process in processes:
            await asyncio.to_thread(process.stop)


class _Clients:
    """The conversations of a scenario, each of which asks, reads, thinks and asks again."""

    def __init__(self, replicas: ReplicaSet, scenario: Scenario) -> None:
        self._replicas = replicas
        self._scenario = scenario
        self._served: list[_Served] = []
        self._ids = itertools.count()

    async def run(self) -> Outcome:
        """Run for the scenario's duration."""
        loop, scenario = asyncio.get_running_loop(), self._scenario
        began_at, at = loop.time(), 0.0
        tasks: list[asyncio.Task[None]] = []
        for after_s, applications, random in conversations(scenario.traffic, scenario.rate, scenario.seed):
            at += after_s
            if at > scenario.duration_s:
                break
            await asyncio.sleep(began_at + at - loop.time())
            tasks.append(asyncio.create_task(self._converse(scenario.traffic, applications, random)))
        await asyncio.sleep(began_at + scenario.duration_s - loop.time())
        for task in tasks:
            task.cancel()
        for ending in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ending, Exception):
                raise ending
        return self._outcome(began_at)

    async def _converse(self, traffic: Traffic, applications: Applications, random: Random) -> None:
        # As in `requests.texts`, with the tokens that engines answer.
        text = applications.draw(random)
        while True:
            num_user_tokens = traffic.user_tokens.draw(random)
            text += array("i", (token & 0x7FFFFFFF for token in array("i", random.randbytes(4 * num_user_tokens))))
            output_tokens = traffic.output_tokens.draw(random)
            random.randbytes(4 * output_tokens)
            text += await self._ask(text, output_tokens)
            await asyncio.sleep(random.expovariate(1 / traffic.think_s))
            if random.random() < 1 / traffic.mean_turns:
                return

    async def _ask(self, prompt: array[int], output_tokens: int) -> array[int]:
        loop = asyncio.get_running_loop()
        served = _Served(loop.time(), len(prompt))
        self._served.append(served)
        token_ids = [token & 0x7FFFFFFF for token in prompt]
        sampling = Sampling(seed=0, temperature=0.0)
        spec = SequenceSpec(
            sequence_id=str(next(self._ids)), prompt_token_ids=token_ids, max_tokens=output_tokens, sampling=sampling
        )
        answer = array("i")
        [stream] = await self._replicas.open([spec])
        with stream:
            async for delta in stream:
                if served.first_token_at is None and delta.token_ids:
                    served.first_token_at = loop.time()
                served.cached_tokens += delta.cached_tokens
                answer.extend(delta.token_ids)
        served.ended_at, served.num_tokens = loop.time(), len(answer)
        return answer

    def _outcome(self, began_at: float) -> Outcome:
        scenario = self._scenario
        served = [each for each in self._served if each.sent_at - began_at >= scenario.warmup_s]
        ended = [each for each in served if each.ended_at is not None]
        over_at = began_at + scenario.duration_s
        return Outcome(
            ttft_s=[(each.first_token_at or over_at) - each.sent_at for each in served],
            gap_s=[_gap_s(each) for each in ended if each.num_tokens > 1],
            num_rejected=0,
            output_tokens_per_s=sum(each.num_tokens for each in ended) / (scenario.duration_s - scenario.warmup_s),
            cached=sum(each.cached_tokens for each in served) / max(1, sum(each.num_prompt_tokens for each in served)),
            imbalance=float("nan"),
        )


def _gap_s(served: _Served) -> float:
    assert served.ended_at is not None
    assert served.first_token_at is not None
    return (served.ended_at - served.first_token_at) / (served.num_tokens - 1)

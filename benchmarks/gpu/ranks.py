"""Several GPUs give the tokens of one: in fp32, with KV heads divided and repeated, and after a rank was killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import tempfile
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import torch

from benchmarks.gpu.engine import tokens_of
from benchmarks.gpu.report import SuiteReport
from streamserve.bench.engine_run import running_engine
from streamserve.bench.workloads import BenchRequest
from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.engine.base import SequenceStream
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.process.supervision import keep_running
from streamserve.engine.remote import RemoteEngine
from streamserve.types import Sampling, SequenceSpec

VOCAB = 4096
OUTPUT = 64


async def check_ranks(report: SuiteReport, world_size: int) -> None:
    """Greedy tokens of `world_size` GPUs are those of one, on shapes with 4 and 2 KV heads, and when a rank is killed."""
    rng = random.Random(0)
    requests = [BenchRequest([rng.randrange(VOCAB) for _ in range(rng.randint(5, 300))], OUTPUT) for _ in range(24)]
    for kv_heads in (4, 2):
        with tempfile.TemporaryDirectory() as folder:
            write_checkpoint(folder, kv_heads)
            expected = await _tokens(folder, 1, requests)
            for eager in (False, True) if kv_heads == 4 else (False,):
                got = await _tokens(folder, world_size, requests, enforce_eager=eager)
                differing = sum(mine != theirs for mine, theirs in zip(expected, got, strict=True))
                report.check(
                    "ranks", float(differing), 0.5, kv_heads=kv_heads, ranks=world_size, eager=eager, compared=len(requests)
                )
            if kv_heads == 4:
                differing = await _differing_after_kill(folder, world_size, requests[:4])
                report.check("ranks", float(differing), 0.5, ranks=world_size, killed="rank 1", compared=4)


def write_checkpoint(folder: str, kv_heads: int) -> None:
    """A random Qwen3 of eight layers and eight heads, in fp32."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=512,
        intermediate_size=1024,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=kv_heads,
        head_dim=64,
        initializer_range=0.1,
        eos_token_id=None,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).float().save_pretrained(folder)


def _config(folder: str, world_size: int, **changes: Any) -> EngineConfig:
    return EngineConfig(
        model=folder, dtype="float32", max_model_len=1024, max_num_seqs=32, kv_cache_memory=1 << 30,
        tensor_parallel_size=world_size, **changes,
    )  # fmt: skip


async def _tokens(folder: str, world_size: int, requests: list[BenchRequest], **changes: Any) -> list[list[int]]:
    async with running_engine(_config(folder, world_size, **changes)) as engine:
        return await tokens_of(engine, requests)


async def _differing_after_kill(folder: str, world_size: int, requests: list[BenchRequest]) -> int:
    """How many of a few long streams are not what they are undisturbed, when a rank is killed after their first tokens."""
    long = [BenchRequest(request.prompt_token_ids, 300) for request in requests]
    expected = await _tokens(folder, world_size, long)
    process = EngineProcess(_config(folder, world_size), resolve(folder))
    engine = RemoteEngine(process.start(), reconnects=True)
    try:
        await engine.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(keep_running, process, max_restarts=1, on_restart=lambda *_: None))
            streams = await engine.open([_spec(place, request) for place, request in enumerate(long)])
            assert process.pid is not None
            ranks = await anyio.to_thread.run_sync(_ranks_of, process.pid)
            got = await asyncio.gather(
                *(_read(stream, ranks[1] if place == 0 else None) for place, stream in enumerate(streams))
            )
            tasks.cancel_scope.cancel()
        return sum(mine != theirs for mine, theirs in zip(expected, got, strict=True))
    finally:
        await engine.stop()
        process.stop()


async def _read(stream: SequenceStream, kills: int | None) -> list[int]:
    """All tokens of a stream; the process `kills` is killed after the first."""
    tokens: list[int] = []
    with stream:
        async for delta in stream:
            if kills is not None and not tokens:
                os.kill(kills, signal.SIGKILL)
            tokens += delta.token_ids
    return tokens


def _spec(place: int, request: BenchRequest) -> SequenceSpec:
    return SequenceSpec(
        sequence_id=f"killed-{place}",
        prompt_token_ids=request.prompt_token_ids,
        max_tokens=request.output_len,
        sampling=Sampling(seed=0, temperature=0.0),
    )


def _ranks_of(pid: int) -> list[int]:
    command = ["pgrep", "-P", str(pid), "-f", "streamserve.executor.rank"]
    return [int(child) for child in subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()]

"""A server under load into which faults are injected at random: nothing is lost, and whoever asks after them is answered.

`make chaos` runs it for ten minutes. STREAMSERVE_CHAOS_S is how long it runs, STREAMSERVE_CHAOS_SEED repeats a run's faults.
"""

from __future__ import annotations

import json
import os
import random
import re
import signal
from collections import Counter
from pathlib import Path
from time import monotonic

import anyio
import httpx
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from streamserve.fail_points import VARIABLE
from tests.chaos.faults import Faults, num_descriptors
from tests.chaos.load import BROKEN_TOKEN, FINISHED, LEFT, NO_TOKEN, Load, Prompts
from tests.chaos.losses import Losses
from tests.chaos.users import users_running
from tests.support.serve_process import ServeProcess, serve_process
from tests.support.tiny_model import VOCAB, TinyLlama

SECONDS = float(os.environ.get("STREAMSERVE_CHAOS_S", "75"))
SEED = int(os.environ.get("STREAMSERVE_CHAOS_SEED", random.SystemRandom().randrange(1 << 30)))
CLIENTS, USERS = 18, 8
MOST_HELD = CLIENTS + 4 * USERS
"""Sequences that there can be: one of each client and three of each user, and those of responses that were left running."""

CONTEXT = 640
RECOVERY_S = 240.0
SEQUENCES = ("vllm:num_requests_running", "vllm:num_requests_waiting")

pytestmark = [pytest.mark.anyio, pytest.mark.slow, pytest.mark.timeout(SECONDS * 2 + 180)]


def checkpoint(folder: Path) -> str:
    """A tiny model, one of whose tokens is broken, a tokenizer of as many words, to which all else is unknown, a template."""
    model = TinyLlama(folder, context=CONTEXT)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][BROKEN_TOKEN] = torch.nan
    # Nor is it often generated.
    tensors["lm_head.weight"][BROKEN_TOKEN] = 0
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    tokenizer = Tokenizer(WordLevel({f"w{number}": number for number in range(VOCAB)}, unk_token="w0"))
    tokenizer.save(str(folder / "tokenizer.json"))
    template = "{% for message in messages %}{{ message.content }}{% endfor %}{{ tools }}"
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return model.path


async def test_faults_lose_nothing_and_whoever_asks_after_them_is_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    print(f"seed {SEED}")
    folder = tmp_path / "faults"
    folder.mkdir()
    monkeypatch.setenv(VARIABLE, str(folder))
    arguments = (
        "--model", checkpoint(tmp_path), "--dtype", "float32", "--max-model-len", str(CONTEXT), "--kv-cache-memory", "1M",
        "--max-num-seqs", "16", "--max-num-batched-tokens", "64", "--enforce-eager", "--api-server-count", "2",
        "--max-engine-restarts", "10000", "--engine-hang-timeout", "8", "--resume-timeout", "2", "--disable-uvicorn-access-log",
    )  # fmt: skip
    with serve_process(*arguments) as server:
        server.wait_ready()
        prompts = Prompts(SEED)
        await prompts.answer_undisturbed(server.base_url)
        port = int(server.base_url.rpartition(":")[2])
        losses = Losses()
        load = Load(port, prompts, losses, SEED)
        num_open = num_descriptors(server.pid)
        try:
            async with load.running(CLIENTS), users_running(server.base_url, USERS, losses, tmp_path) as users:
                injected = await inject(Faults(server, losses, folder), server)
        finally:
            # What pytest shows when the test fails.
            print(server.log, json.dumps(load.outcomes, indent=1))
        await idle(server, num_open)
        print(json.dumps({"injected": injected, "outcomes": load.outcomes, "users": users}, indent=1))
        # Who is refused while there is no engine asks again at once.
        others = load.outcomes.total() - sum(load.outcomes[how] for how in (LEFT, NO_TOKEN, "unavailable"))
        assert load.outcomes[FINISHED] > others / 2, "most answers were lost"
        server.signal(signal.SIGTERM)
        assert server.wait() == 0


async def inject(faults: Faults, server: ServeProcess) -> Counter[str]:
    """Inject faults for `SECONDS`; returns how often which."""
    injected, drawing, until = Counter[str](), random.Random(SEED), monotonic() + SECONDS
    while monotonic() < until:
        name = drawing.choice(list(faults.by_name))
        print(f"{until - monotonic():5.1f} s left: {name}")
        await faults.by_name[name]()
        injected[name] += 1
        await recovered(server, name)
        await anyio.sleep(drawing.random())
    return injected


async def recovered(server: ServeProcess, name: str) -> None:
    """Return once the server is ready again; fail when that takes too long, or sequences stay whose clients have gone."""
    try:
        with anyio.fail_after(RECOVERY_S):
            while not await is_ready(server):  # noqa: ASYNC110
                await anyio.sleep(0.1)
    except TimeoutError:
        raise AssertionError(f"not ready again after this: {name}\n{server.log}") from None
    held = await gauges(server, *SEQUENCES)
    assert sum(held) <= MOST_HELD, f"{held} sequences after this: {name}"


async def is_ready(server: ServeProcess) -> bool:
    try:
        async with httpx.AsyncClient(base_url=server.base_url, timeout=RECOVERY_S) as client:
            return (await client.get("/ready")).status_code == 200
    except httpx.TransportError:
        return False


async def idle(server: ServeProcess, num_open: int) -> None:
    """Return once nothing is held for clients that are gone; fail when something stays."""
    held: list[float] = []
    try:
        with anyio.fail_after(RECOVERY_S):
            while not held or any(held) or num_descriptors(server.pid) > num_open + 4:
                await anyio.sleep(0.2)
                held = await gauges(server, *SEQUENCES, "vllm:kv_cache_usage_perc")
    except TimeoutError:
        raise AssertionError(f"still held: {held}, {num_descriptors(server.pid)} descriptors of {num_open}") from None


async def gauges(server: ServeProcess, *names: str) -> list[float]:
    """Figures of the engine; none while there is no engine."""
    try:
        async with httpx.AsyncClient(base_url=server.base_url, timeout=RECOVERY_S) as client:
            page = (await client.get("/metrics")).text
    except httpx.TransportError:
        return []
    return [float(value) for name in names for value in re.findall(rf"^{name}{{.*}} (\S+)$", page, re.MULTILINE)]

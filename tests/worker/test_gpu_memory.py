"""Memory of steps on GPUs: what is reserved stays, and two of them divide a step alike. `pytest -m gpu`; one needs two GPUs."""

from __future__ import annotations

from pathlib import Path

import anyio
import pytest
import torch

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.remote import RemoteEngine
from streamserve.fail_points import VARIABLE, arm, disarm
from streamserve.worker.device.select import open_device
from streamserve.worker.step_memory import OUT_OF_MEMORY
from tests.support.reading import read_together
from tests.support.specs import make_spec
from tests.support.tiny_model import TinyLlama

pytestmark = pytest.mark.gpu


def test_what_is_reserved_stays_with_this_process_and_what_is_not_there_is_told() -> None:
    device = open_device("cuda", None)
    with device.stream():
        device.reserve(1 << 28)
        assert torch.cuda.memory_reserved(device.torch_device) >= 1 << 28
        with pytest.raises(torch.OutOfMemoryError):
            device.reserve(1 << 46)


@pytest.mark.anyio
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
async def test_a_step_that_one_of_two_gpus_lacks_the_memory_for_is_divided_on_both(
    tiny: TinyLlama, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More tokens than captured steps have, and as many as those have; each fault is one rank's."""
    monkeypatch.setenv(VARIABLE, str(tmp_path))
    arm(tmp_path, OUT_OF_MEMORY, times=3, at_least=1000)
    config = EngineConfig(
        model=tiny.path,
        device="cuda",
        dtype="float32",
        max_num_seqs=32,
        max_num_batched_tokens=4096,
        kv_cache_memory=64 << 20,
        tensor_parallel_size=2,
    )
    process = EngineProcess(config, resolve(tiny.path))
    engine = RemoteEngine(process)
    prompts = [[3 + (place + token) % 190 for token in range(200)] for place in range(20)]
    specs = [
        make_spec(str(place), prompt, seed=0, temperature=0.0, max_tokens=8, logprobs=1 if place == 3 else None)
        for place, prompt in enumerate(prompts)
    ]
    await engine.start()
    try:
        with anyio.fail_after(60):
            wholes = await read_together(await engine.open(specs))
        assert disarm(tmp_path, OUT_OF_MEMORY) == 0
        assert (await engine.stats()).divided_steps >= 1
    finally:
        await engine.stop()
    assert [whole.token_ids for whole in wholes] == [tiny.greedy(prompt, 8) for prompt in prompts]

"""A real, tiny model in both hosts: the same tokens inline, overlapped or not, and across the socket."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from streamserve.checkpoint.files import Checkpoint
from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.engine.base import Engine
from streamserve.engine.inline import InlineEngine
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.remote import RemoteEngine
from streamserve.types import SequenceSpec, TokenDelta
from tests.engine.conftest import MakeSpec
from tests.support.reading import read_all, read_together
from tests.support.specs import make_spec
from tests.support.tiny_model import VOCAB, TinyLlama

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> TinyLlama:
    return TinyLlama(tmp_path_factory.mktemp("tiny-llama"))


def small(checkpoint: Checkpoint, *, overlap: bool = True) -> EngineConfig:
    """So small that a crowd is chunked, queued and preempted."""
    return EngineConfig(
        model=str(checkpoint.path),
        dtype="float32",
        kv_cache_memory=2 * 2 * 2 * 16 * 16 * 4 * 24,
        max_num_seqs=6,
        max_num_batched_tokens=32,
        overlap=overlap,
    )


HOSTS: dict[str, Callable[[Checkpoint], Engine]] = {
    "inline": lambda checkpoint: InlineEngine(small(checkpoint), checkpoint),
    "inline, sequential": lambda checkpoint: InlineEngine(small(checkpoint, overlap=False), checkpoint),
    "process": lambda checkpoint: RemoteEngine(EngineProcess(small(checkpoint), checkpoint)),
}


async def answers(engine: Engine, specs: list[SequenceSpec]) -> list[TokenDelta]:
    await engine.start()
    try:
        wholes = await read_together(await engine.open(specs))
        await leave_in_the_middle(engine)
        return wholes
    finally:
        await engine.stop()


async def leave_in_the_middle(engine: Engine) -> None:
    """A reader leaves after its first token; its blocks come back while others run on."""
    specs = [make_spec(f"leaving-{n}", [n, 2, 3], seed=n, max_tokens=40) for n in (1, 2)]
    leaver, stayer = await engine.open(specs)
    with leaver:
        await anext(leaver)
    assert len((await read_all(stayer)).token_ids) == 40
    assert (await engine.stats()).kv_blocks_used == 0


async def test_every_host_says_what_the_reference_says(model: TinyLlama, make_spec: MakeSpec) -> None:
    prompts = [[(7 * n + token) % VOCAB for token in range(3 + 5 * n)] for n in range(10)]
    greedy = [make_spec(prompt, max_tokens=12 + n, temperature=0.0) for n, prompt in enumerate(prompts)]
    sampled = [make_spec(prompt, max_tokens=12, seed=n) for n, prompt in enumerate(prompts)]
    expected = [model.greedy(spec.prompt_token_ids, spec.max_tokens) for spec in greedy]
    checkpoint = resolve(model.path)
    said = {name: await answers(host(checkpoint), greedy + sampled) for name, host in HOSTS.items()}
    for name, wholes in said.items():
        assert [whole.token_ids for whole in wholes[: len(greedy)]] == expected, name
    by_tokens = {name: [whole.token_ids for whole in wholes] for name, wholes in said.items()}
    assert by_tokens["inline"] == by_tokens["inline, sequential"] == by_tokens["process"]
    assert {whole.finish_reason for whole in said["process"]} == {"length"}

"""AsyncEngine: the library for asyncio programs, with a scripted device and, in the end, a real one."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from streamserve import AsyncEngine, SamplingParams, StructuredOutputs
from streamserve.errors import ConfigError, EngineDead, InvalidParameter, UnsupportedParameter
from tests.support.scripted import ScriptedExecutor, continuation

pytestmark = pytest.mark.anyio

PROMPT = [5, 6, 7]


def scripted(executor: ScriptedExecutor | None = None, **settings: Any) -> AsyncEngine:
    return AsyncEngine(model="demo", executor=executor or ScriptedExecutor(), **settings)


async def test_tokens_come_one_by_one_and_end_by_length() -> None:
    async with scripted() as engine:
        deltas = [delta async for delta in await engine.generate(PROMPT, SamplingParams(max_tokens=8, ignore_eos=True))]
    token_ids = [token_id for delta in deltas for token_id in delta.token_ids]
    assert token_ids == continuation(PROMPT, 8)
    assert "".join(delta.text for delta in deltas) == engine_text(token_ids)
    assert [delta.finish_reason for delta in deltas if delta.finish_reason] == ["length"]


def engine_text(token_ids: list[int]) -> str:
    from streamserve.checkpoint.names import resolve
    from streamserve.text.tokenizers.tokenizer import load_tokenizer

    return load_tokenizer(resolve("demo")).decode(token_ids)


async def test_leaving_the_loop_frees_the_sequence_within_a_step() -> None:
    async with scripted() as engine:
        async for _ in await engine.generate(PROMPT, SamplingParams(max_tokens=100, ignore_eos=True)):
            break
        await anyio.wait_all_tasks_blocked()
        stats = await engine.stats()
    assert (stats.num_requests_running, stats.num_requests_waiting, stats.kv_blocks_used) == (0, 0, 0)


async def test_leaving_the_block_aborts() -> None:
    executor = ScriptedExecutor(gated=True)
    async with scripted(executor) as engine:
        with await engine.generate(PROMPT, SamplingParams(max_tokens=100, ignore_eos=True)):
            await anyio.wait_all_tasks_blocked()
            assert (await engine.stats()).num_requests_running == 1
        executor.open_gate()
        await anyio.wait_all_tasks_blocked()
        assert (await engine.stats()).num_requests_running == 0


async def test_cancelling_a_reader_aborts_its_request_only() -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True)
    async with scripted(ScriptedExecutor(gated=True)) as engine:

        async def read_for_ever() -> None:
            with await engine.generate([9, 9], SamplingParams(max_tokens=400, ignore_eos=True)) as generation:
                async for _ in generation:
                    await anyio.sleep_forever()

        other = await engine.generate(PROMPT, params)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(read_for_ever)
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
        executor = engine._executor
        assert isinstance(executor, ScriptedExecutor)
        executor.open_gate()
        assert sum([len(delta.token_ids) async for delta in other]) == 20
        assert (await engine.stats()).num_requests_running == 0


async def test_a_broken_device_raises_from_the_loop() -> None:
    executor = ScriptedExecutor(gated=True)
    async with scripted(executor) as engine:
        generation = await engine.generate(PROMPT, SamplingParams(max_tokens=5))
        executor.failure = RuntimeError("device lost")
        await anyio.wait_all_tasks_blocked()
        executor.open_gate()
        with pytest.raises(EngineDead):
            async for _ in generation:
                pytest.fail("no token can come")


async def test_an_engine_that_runs_is_not_started_again() -> None:
    async with scripted() as engine:
        with pytest.raises(RuntimeError, match="runs already"):
            await engine.start()
        assert engine.info.max_num_seqs > 0


async def test_prompts_come_in_vllms_forms_too() -> None:
    async with scripted() as engine:
        params = SamplingParams(max_tokens=3, ignore_eos=True)
        for prompt in (PROMPT, {"prompt_token_ids": PROMPT}):
            deltas = [delta async for delta in await engine.generate(prompt, params)]
            assert [token_id for delta in deltas for token_id in delta.token_ids] == continuation(PROMPT, 3)
        for wrong in ({"text": "a"}, {"prompt": None}, 7, None):
            with pytest.raises(InvalidParameter, match="prompt"):
                await engine.generate(wrong, params)  # type: ignore[arg-type]
        with pytest.raises(UnsupportedParameter, match="multi_modal_data"):
            await engine.generate({"prompt": "a", "multi_modal_data": {}}, params)


async def test_a_schema_that_cannot_be_compiled_is_refused_before_anything_runs() -> None:
    executor = ScriptedExecutor()
    async with scripted(executor) as engine:
        with pytest.raises(InvalidParameter, match="structured_outputs"):
            await engine.generate(PROMPT, SamplingParams(structured_outputs=StructuredOutputs(regex="[")))
    assert not executor.submitted


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"block_sise": 16}, "block_sise"),
        ({"max_num_seqs": "many"}, "max_num_seqs"),
        ({"dtype": "int3"}, "dtype"),
        ({"block_size": 7}, "block-size"),
        ({"data_parallel_size": 2}, "data-parallel-size 2: a process has one engine"),
        ({"replica": 1}, "replica 1"),
    ],
)
async def test_wrong_settings_are_refused_by_name(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AsyncEngine(model="demo", **settings)
    with pytest.raises(ConfigError, match="name a model"):
        AsyncEngine()


async def test_a_model_that_is_not_there_leaves_nothing_running() -> None:
    executor = ScriptedExecutor()
    with pytest.raises(ConfigError, match="/nowhere"):
        async with AsyncEngine(model="/nowhere", executor=executor):
            pytest.fail("it can't start")

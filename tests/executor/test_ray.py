"""Ranks as actors of a Ray cluster on this machine: `pip install 'streamserve[ray]'`, then `pytest -m ray`."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.errors import ConfigError, EngineDead
from streamserve.executor.choose import executor_for
from streamserve.executor.group import GroupExecutor
from streamserve.executor.launchers.ray import RayLauncher
from streamserve.scheduling.plan import Plan, RowGrowth, RowStart, RowWork
from streamserve.types import Sampling
from tests.support.tiny_model import TinyLlama

pytestmark = [pytest.mark.ray, pytest.mark.asyncio, pytest.mark.filterwarnings("ignore::ResourceWarning")]

GREEDY = Sampling(seed=0, temperature=0.0)


def config_of(tiny: TinyLlama, world_size: int) -> EngineConfig:
    return EngineConfig(
        model=tiny.path,
        device="cpu",
        dtype="float32",
        max_num_seqs=4,
        tensor_parallel_size=world_size,
        distributed_executor_backend="ray",
    )


def decode(step: int) -> Plan:
    return Plan(step, [], [], [RowWork(0, step + 1, 1, 1)])


async def test_two_actors_give_the_tokens_of_one_rank_until_one_of_them_is_killed(tiny: TinyLlama) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=2, include_dashboard=False)
    try:
        launcher = RayLauncher(config_of(tiny, 2), resolve(tiny.path))
        executor = GroupExecutor(launcher)
        info = await executor.start()
        assert info.device.startswith("2 x cpu")
        prompt = [5, 6, 7]
        start, growth = RowStart(0, prompt, 3, GREEDY), RowGrowth(0, 0, 0, [0])
        handles = [executor.submit(Plan(1, [start], [growth], [RowWork(0, 0, 3, 1)]))]
        handles += [executor.submit(decode(step)) for step in range(2, 8)]
        tokens = [(await handle.result()).token_ids[0][0] for handle in handles]
        assert tokens == tiny.greedy(prompt, 7)

        ray.kill(launcher.actors[1])
        with anyio.fail_after(30), pytest.raises(EngineDead, match=r"rank \d "):
            for step in range(8, 1000):
                await executor.submit(decode(step)).result()
        await executor.stop()
        with anyio.fail_after(20):
            while ray.available_resources().get("CPU") != 2.0:
                await anyio.lowlevel.checkpoint()
    finally:
        ray.shutdown()


async def test_one_rank_runs_on_ray_too_and_a_cluster_that_was_started_for_it_ends_with_it(tiny: TinyLlama) -> None:
    ray = pytest.importorskip("ray")
    executor = executor_for(config_of(tiny, 1), resolve(tiny.path))
    await executor.start()
    start, growth = RowStart(0, [5, 6, 7], 3, GREEDY), RowGrowth(0, 0, 0, [0])
    result = await executor.submit(Plan(1, [start], [growth], [RowWork(0, 0, 3, 1)])).result()
    assert result.token_ids == [tiny.greedy([5, 6, 7], 1)]
    await executor.stop()
    assert not ray.is_initialized()


async def test_a_cluster_that_is_too_small_is_told_at_start(tiny: TinyLlama) -> None:
    ray = pytest.importorskip("ray")
    ray.init(num_cpus=1, include_dashboard=False)
    try:
        with pytest.raises(ConfigError, match="need 2 CPUs; the Ray cluster has 1: lower one of them"):
            await executor_for(config_of(tiny, 2), resolve(tiny.path)).start()
    finally:
        ray.shutdown()


async def test_a_group_spans_the_nodes_of_a_cluster_where_none_has_room_for_it(
    tiny: TinyLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        monkeypatch.setenv("RAY_ADDRESS", cluster.address)
        executor = executor_for(config_of(tiny, 2), resolve(tiny.path))
        await executor.start()
        start, growth = RowStart(0, [5, 6, 7], 3, GREEDY), RowGrowth(0, 0, 0, [0])
        result = await executor.submit(Plan(1, [start], [growth], [RowWork(0, 0, 3, 1)])).result()
        assert result.token_ids == [tiny.greedy([5, 6, 7], 1)]
        [group] = ray.util.placement_group_table().values()
        assert len(set(group["bundles_to_node_id"].values())) == 2
        await executor.stop()
    finally:
        ray.shutdown()
        cluster.shutdown()

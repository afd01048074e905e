"""Which GPU or share of the cores a rank of an engine takes."""

from __future__ import annotations

import pytest

from streamserve.config import EngineConfig
from streamserve.process.limits import share_of_cores


@pytest.mark.parametrize(("engines", "ranks"), [(1, 2), (2, 1), (3, 2)])
def test_every_rank_of_every_engine_has_a_gpu_of_its_own(engines: int, ranks: int) -> None:
    taken = [
        EngineConfig(model="m", data_parallel_size=engines, tensor_parallel_size=ranks, replica=replica).device_index(rank)
        for replica in range(engines)
        for rank in range(ranks)
    ]
    assert taken == list(range(engines * ranks))


def test_a_lone_rank_takes_whichever_gpu_comes_first() -> None:
    assert EngineConfig(model="m").device_index(0) is None


def test_cores_are_divided_among_all_ranks_and_nobody_gets_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert [share_of_cores(EngineConfig(model="m", data_parallel_size=count).num_ranks) for count in (1, 3, 20)] == [8, 2, 1]

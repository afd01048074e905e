"""The demo model in fp32, through scheduler and runner: the tokens of transformers, whatever else runs and however it is cut.

The goldens are transformers' own (tests/support/make_golden.py).
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from streamserve.checkpoint.names import resolve
from streamserve.config import EngineConfig
from streamserve.scheduling.limits import SchedulerLimits
from streamserve.types import EngineInfo
from streamserve.worker.runner import Runner
from streamserve.worker.startup.compiled_layers import compile_for
from tests.support.stepping import Stepper, spec

GOLDEN: dict[str, dict[str, list[int]]] = json.loads((Path(__file__).parents[1] / "data" / "demo_greedy.json").read_text())
LONG = GOLDEN["long"]["prompt"]


CONFIG = EngineConfig(
    model="demo", device="cpu", dtype="float32", max_num_seqs=8, max_model_len=512, max_num_batched_tokens=512
)


class Demo:
    """The loaded model; each `stepper` has a scheduler of its own and begins with an empty cache."""

    def __init__(self) -> None:
        self._runner = Runner(CONFIG, resolve("demo"))
        self.info: EngineInfo = self._runner.load()

    def stepper(self, *, step_tokens: int = 512, num_blocks: int | None = None, in_flight: int = 2) -> Stepper:
        limits = SchedulerLimits(
            num_blocks=num_blocks or self.info.num_blocks,
            block_size=self.info.block_size,
            max_num_seqs=8,
            max_num_batched_tokens=step_tokens,
            max_model_len=512,
        )
        return Stepper(self._runner, limits, in_flight=in_flight)


@pytest.fixture(scope="module", params=["eager", pytest.param("compiled", marks=[pytest.mark.slow, pytest.mark.timeout(600)])])
def demo(request: pytest.FixtureRequest) -> Demo:
    if request.param == "compiled":
        compile_for(CONFIG, resolve("demo"))
    demo = Demo()
    assert demo.info.compiled is (request.param == "compiled")
    return demo


def run(stepper: Stepper, *names: str) -> dict[str, list[int]]:
    deltas = stepper.run(*(spec(name, GOLDEN[name]["prompt"], len(GOLDEN[name]["output"])) for name in names))
    return {name: delta.token_ids for name, delta in deltas.items()}


def golden(*names: str) -> dict[str, list[int]]:
    return {name: GOLDEN[name]["output"] for name in names}


@pytest.mark.parametrize("name", ["chat", "chinese"])
def test_alone(demo: Demo, name: str) -> None:
    assert run(demo.stepper(in_flight=1), name) == golden(name)


def test_in_a_crowd_with_overlapped_steps(demo: Demo) -> None:
    assert run(demo.stepper(), *GOLDEN) == golden(*GOLDEN)


def test_in_a_crowd_cut_into_chunks_that_split_blocks(demo: Demo) -> None:
    names = ["code", "chinese", "long"]
    assert run(demo.stepper(step_tokens=25), *names) == golden(*names)


def test_preempted(demo: Demo) -> None:
    # Each grows from one block to two: three hold both prompts and not both answers.
    stepper = demo.stepper(num_blocks=3)
    assert run(stepper, "code", "chat") == golden("code", "chat")
    assert stepper.scheduler.stats().num_preemptions > 0


def test_with_a_prefix_hit(demo: Demo) -> None:
    stepper = demo.stepper()
    stepper.run(spec("before", [*LONG[:-3], 11, 12, 13], 2))
    got = stepper.run(spec("long", LONG, len(GOLDEN["long"]["output"])))["long"]
    assert got.cached_tokens >= 64
    assert got.token_ids == GOLDEN["long"]["output"]

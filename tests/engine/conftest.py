"""What the engine's tests share: engines over scripted steps, and sequences to run on them."""

from __future__ import annotations

import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from streamserve.config import EngineConfig
from streamserve.engine.constraints import CompileConstraint
from streamserve.engine.inline import InlineEngine
from streamserve.engine.process.launch import EngineProcess
from streamserve.engine.stream import StreamLimits
from streamserve.types import SequenceSpec
from tests.engine.processes import Pair, scripted_process
from tests.support import specs
from tests.support.checkpoints import no_weights
from tests.support.scripted import ScriptedExecutor

Running = Callable[..., AbstractAsyncContextManager[InlineEngine]]
MakeSpec = Callable[..., SequenceSpec]


@pytest.fixture(scope="session", autouse=True)
def children_find_the_tests() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]), prepend=os.pathsep)
        yield


@pytest.fixture
def process() -> Iterator[EngineProcess]:
    """An engine process that has been started."""
    process = scripted_process()
    process.start()
    yield process
    process.stop()


@pytest.fixture(scope="module")
def processes() -> Iterator[Pair]:
    """Two engine processes; what a test ends it starts again."""
    pair = [scripted_process(), scripted_process()]
    for process in pair:
        process.start()
    yield pair
    for process in pair:
        process.stop()


@pytest.fixture
def running() -> Running:
    """`async with running(executor, ...)`: an inline engine, started and in the end stopped."""

    @asynccontextmanager
    async def run(
        executor: ScriptedExecutor,
        *,
        streams: StreamLimits | None = None,
        compile_constraint: CompileConstraint | None = None,
        **config: Any,
    ) -> AsyncIterator[InlineEngine]:
        engine = InlineEngine(
            EngineConfig(model="scripted", **config),
            no_weights(),
            executor=executor,
            compile_constraint=compile_constraint,
            stream_limits=streams,
        )
        await engine.start()
        try:
            yield engine
        finally:
            await engine.stop()

    return run


@pytest.fixture
def make_spec() -> MakeSpec:
    """Sequences with ids of their own, 20 prompt tokens and 10 to generate unless told otherwise."""
    numbers = itertools.count()

    def make(prompt: list[int] | None = None, **fields: Any) -> SequenceSpec:
        number = next(numbers)
        defaults = {"sequence_id": f"sequence-{number}", "seed": number, "max_tokens": 10}
        prompt = prompt or [number % 50 + token for token in range(20)]
        return specs.make_spec(prompt_token_ids=prompt, **(defaults | fields))

    return make

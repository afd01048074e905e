"""Structured outputs are compiled before admission, for a bounded time, and leave nothing behind when that fails."""

from __future__ import annotations

import anyio
import pytest

from streamserve.errors import UnsupportedParameter
from streamserve.scheduling.constraint import Constraint
from streamserve.types import StructuredOutputs
from tests.engine.conftest import MakeSpec, Running
from tests.support.reading import read_all
from tests.support.scripted import ScriptedExecutor

pytestmark = pytest.mark.anyio

CHOICE = StructuredOutputs(choice=["yes", "no"])


class ThreeTokens:
    """A language whose every text is three tokens long."""

    spent_s = 0.0

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def bitmask(self) -> bytes:
        return b"\xff" * 128

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)

    @property
    def is_complete(self) -> bool:
        return len(self.accepted) == 3


async def three_tokens(wanted: StructuredOutputs) -> Constraint:
    assert wanted == CHOICE
    return ThreeTokens()


async def test_a_compiled_constraint_ends_its_sequence(running: Running, make_spec: MakeSpec) -> None:
    async with running(ScriptedExecutor(), compile_constraint=three_tokens) as engine:
        bound, free = await engine.open([make_spec(structured_outputs=CHOICE), make_spec()])
        whole = await read_all(bound)
        assert (len(whole.token_ids), whole.finish_reason) == (3, "stop")
        assert len((await read_all(free)).token_ids) == 10


async def test_without_a_compiler_they_are_refused_by_name(running: Running, make_spec: MakeSpec) -> None:
    async with running(ScriptedExecutor()) as engine:
        with pytest.raises(UnsupportedParameter, match="structured_outputs"):
            await engine.open([make_spec(), make_spec(structured_outputs=CHOICE)])
        assert (await engine.stats()).num_requests_waiting == 0


async def test_others_run_on_while_one_compiles(running: Running, make_spec: MakeSpec) -> None:
    proceed = anyio.Event()

    async def when_told(wanted: StructuredOutputs) -> Constraint:
        await proceed.wait()
        return ThreeTokens()

    async with running(ScriptedExecutor(), compile_constraint=when_told) as engine:

        async def bound() -> None:
            [stream] = await engine.open([make_spec(structured_outputs=CHOICE)])
            assert len((await read_all(stream)).token_ids) == 3

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(bound)
            [stream] = await engine.open([make_spec()])
            assert len((await read_all(stream)).token_ids) == 10
            proceed.set()

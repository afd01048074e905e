"""A run has one ending, whoever brings it about, and holds its sequences exactly as long as its block."""

from __future__ import annotations

import anyio
import pytest

from streamserve.errors import StreamFailed, StreamserveError, Unavailable
from streamserve.frontend import Frontend
from streamserve.server.config import ServerConfig
from streamserve.server.delivery.run import Run
from streamserve.server.service import Service
from streamserve.types import SamplingParams
from tests.support.byte_tokenizer import EOS, byte_tokenizer
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio


async def new_run(engine: ScriptedEngine, service: Service | None = None) -> Run:
    service = service or Service(ServerConfig(model_names=["scripted"]))
    service.attach(Frontend(engine, byte_tokenizer(), eos_token_ids=[EOS]), {})
    prompt = await service.frontend.prepare("say", SamplingParams(max_tokens=100), request_id="id-0")
    return service.new_run("id", "scripted", [prompt])


class Written:
    """What a writer has written: the answer, and failures."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self.texts: list[str] = []
        self.failures: list[StreamserveError] = []
        self.begun = anyio.Event()

    async def answer(self) -> None:
        self.begun.set()
        async for delta in self._run:
            self.texts.append(delta.text)
        self._run.has_ending = True

    async def failure(self, error: StreamserveError) -> None:
        self.failures.append(error)


async def test_the_whole_text_is_written_and_no_failure() -> None:
    async with await new_run(ScriptedEngine(reply=text_reply("abc"))) as run:
        written = Written(run)
        await run.answer(written.answer, written.failure)
    assert ("".join(written.texts), written.failures) == ("abc", [])


async def test_failing_ends_the_writing_with_that_failure() -> None:
    engine = ScriptedEngine()
    async with await new_run(engine) as run, anyio.create_task_group() as tasks:
        written = Written(run)
        tasks.start_soon(run.answer, written.answer, written.failure)
        await written.begun.wait()
        run.fail(Unavailable("draining"))
        run.fail(StreamFailed("later"))
    assert [error.message for error in written.failures] == ["draining"]
    assert engine.aborted == list(engine.specs)


async def test_a_fault_of_the_writer_is_a_failure_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async with await new_run(ScriptedEngine()) as run:
        written = Written(run)

        async def stumble() -> None:
            raise RuntimeError("a secret")

        await run.answer(stumble, written.failure)
    [error] = written.failures
    assert error.type == "internal_error"
    assert "secret" not in error.message
    assert "a secret" in caplog.text


async def test_a_failure_that_comes_after_the_ending_is_not_written() -> None:
    async with await new_run(ScriptedEngine(reply=text_reply("abc"))) as run:
        written = Written(run)

        async def answer_slowly() -> None:
            await written.answer()
            run.fail(Unavailable("draining"))
            await anyio.sleep_forever()

        await run.answer(answer_slowly, written.failure)
    assert ("".join(written.texts), written.failures) == ("abc", [])


async def test_nothing_more_is_written_to_a_client_that_has_left() -> None:
    async with await new_run(ScriptedEngine()) as run, anyio.create_task_group() as tasks:
        written = Written(run)
        tasks.start_soon(run.answer, written.answer, written.failure)
        await written.begun.wait()
        run.leave()
        run.fail(Unavailable("draining"))
    assert (run.has_left, run.error, written.failures) == (True, None, [])


async def test_the_last_text_of_a_choice_that_fails_still_comes() -> None:
    engine = ScriptedEngine()
    async with await new_run(engine) as run:
        [sequence] = await engine.sequences()
        engine.say(sequence, "par")
        engine.fail(sequence, "slow_consumer", "the reader took nothing")
        written = Written(run)
        await run.answer(written.answer, written.failure)
    assert "".join(written.texts) == "par"
    assert [error.code for error in written.failures] == ["slow_consumer"]


async def test_leaving_the_block_aborts_what_runs_and_frees_the_id() -> None:
    engine = ScriptedEngine()
    service = Service(ServerConfig(model_names=["scripted"]))
    async with await new_run(engine, service):
        assert "id" in service.delivery.active_requests
    assert engine.aborted == list(engine.specs)
    assert "id" not in service.delivery.active_requests


async def test_a_run_that_is_over_can_not_be_ended_again() -> None:
    async with await new_run(ScriptedEngine(reply=text_reply("abc"))) as run:
        written = Written(run)
        await run.answer(written.answer, written.failure)
    run.abort()
    run.fail(Unavailable("draining"))
    assert run.error is None

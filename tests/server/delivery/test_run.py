"""A run has one ending, whoever brings it about, and holds its sequences exactly as long as its block."""

from __future__ import annotations

import anyio
import pytest

from streamserve.errors import StreamFailed, StreamserveError, Unavailable
from streamserve.frontend import Frontend
from streamserve.server.apis.openai.answers.events import Failure
from streamserve.server.apis.openai.answers.logprobs import TokenNames
from streamserve.server.apis.openai.answers.script import ChoicePreamble, CompletionScript, StreamFormat
from streamserve.server.config import ServerConfig
from streamserve.server.delivery.event_log import LogLimits
from streamserve.server.delivery.identity import Identity
from streamserve.server.delivery.logged_run import LoggedRun
from streamserve.server.delivery.run import Run
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.service import Service
from streamserve.types import SamplingParams, TokenDelta
from tests.support.byte_tokenizer import EOS, byte_tokenizer
from tests.support.scripted_engine import ScriptedEngine, text_reply

pytestmark = pytest.mark.anyio


async def new_run(engine: ScriptedEngine, service: Service | None = None, *, stop: str | None = None) -> Run:
    service = service or Service(ServerConfig(model_names=["scripted"]))
    service.attach(Frontend(engine, byte_tokenizer(), eos_token_ids=[EOS]), {})
    prompt = await service.frontend.prepare("say", SamplingParams(max_tokens=100, stop=stop), request_id="id-0")
    return service.new_run(Identity("id", "id"), "scripted", [prompt])


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
    assert (run.error, written.failures) == (None, [])


async def test_the_last_text_of_a_choice_that_fails_still_comes() -> None:
    engine = ScriptedEngine()
    async with await new_run(engine, stop="END") as run:
        [sequence] = await engine.sequences()
        # The end of it could still become the stop string, so it is held back until the failure.
        engine.say(sequence, "part EN")
        engine.fail(sequence, "slow_consumer", "the reader took nothing")
        written = Written(run)
        await run.answer(written.answer, written.failure)
    assert "".join(written.texts) == "part EN"
    assert [error.code for error in written.failures] == ["slow_consumer"]


async def test_leaving_the_block_aborts_what_runs_and_frees_the_id() -> None:
    engine = ScriptedEngine()
    service = Service(ServerConfig(model_names=["scripted"]))
    async with await new_run(engine, service):
        assert OwnedId("", "id") in service.delivery.active_requests
    assert engine.aborted == list(engine.specs)
    assert OwnedId("", "id") not in service.delivery.active_requests


async def test_a_run_that_is_over_can_not_be_ended_again() -> None:
    async with await new_run(ScriptedEngine(reply=text_reply("abc"))) as run:
        written = Written(run)
        await run.answer(written.answer, written.failure)
    run.abort()
    run.fail(Unavailable("draining"))
    assert run.error is None


async def test_a_logged_run_ends_without_waiting_for_its_reader() -> None:
    engine = ScriptedEngine()
    run = await new_run(engine)
    usage = run.account.usage
    script = CompletionScript(StreamFormat(id="id", created=1, model="m", names=TokenNames()), [ChoicePreamble()], usage)
    logged = LoggedRun(run, script, gap_event=Failure, limits=LogLimits(window=1))
    with logged.log.read(0, lambda: None):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(logged.write)
            [sequence] = await engine.sequences()
            engine.generate(sequence, TokenDelta([ord("a")], finish_reason="length"))
            with anyio.fail_after(5):
                await logged.wait_ended()
    assert logged.log.is_complete

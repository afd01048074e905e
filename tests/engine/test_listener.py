"""The engine socket, both ends in this process: bursts of commands, broken peers, peers that do not read."""

from __future__ import annotations

import asyncio
import math
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path

import anyio
import anyio.abc
import anyio.lowlevel
import msgspec
import pytest

from streamserve.config import EngineConfig
from streamserve.engine.base import SequenceStream
from streamserve.engine.constraints import CompileConstraint
from streamserve.engine.core import EngineCore
from streamserve.engine.ipc import frames
from streamserve.engine.ipc.link import LinkLimits
from streamserve.engine.ipc.listener import Listener, WorkerConnection
from streamserve.engine.ipc.packing import pack
from streamserve.engine.ipc.standings import Standings
from streamserve.engine.remote import RemoteEngine
from streamserve.errors import (
    ConfigError,
    EngineDead,
    InvalidParameter,
    QueueFull,
    RateLimited,
    StreamserveError,
    Unavailable,
    UnsupportedParameter,
)
from streamserve.process.framing import encode
from streamserve.scheduling.constraint import Constraint
from streamserve.types import ErrorInfo, StructuredOutputs, Tenant
from tests.engine.conftest import MakeSpec
from tests.support.reading import read_all
from tests.support.scripted import ScriptedExecutor, continuation

pytestmark = pytest.mark.anyio

CHOICE = StructuredOutputs(choice=["yes", "no"])
Serving = Callable[..., AbstractAsyncContextManager[EngineCore]]


@pytest.fixture
def address(tmp_path: Path) -> str:
    return str(tmp_path / "engine.sock")


@pytest.fixture
def serving(address: str) -> Serving:
    """`async with serving(executor)`: a core behind a socket at `address`."""

    @asynccontextmanager
    async def serve(
        executor: ScriptedExecutor, *, compile_constraint: CompileConstraint | None = None, limits: LinkLimits | None = None
    ) -> AsyncIterator[EngineCore]:
        core = EngineCore(EngineConfig(model="scripted"), executor, compile_constraint=compile_constraint)
        listener = Listener(core, limits)
        listening = socket.socket(socket.AF_UNIX)
        listening.bind(address)
        listening.listen()
        await listener.listen(listening)
        listener.announce_ready(await core.start())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(core.run)
            try:
                yield core
            finally:
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await listener.close()

    return serve


@pytest.fixture
async def remote(address: str) -> AsyncIterator[RemoteEngine]:
    """Not started yet: that needs an engine that serves."""
    remote = RemoteEngine(address)
    yield remote
    await remote.stop()


async def until(holds: Callable[[], bool]) -> None:
    with anyio.fail_after(20):
        while not holds():
            await anyio.lowlevel.checkpoint()


async def send_all(address: str, data: bytes) -> anyio.abc.ByteStream:
    stream = await anyio.connect_unix(address)
    await stream.send(data)
    return stream


async def replies_of(stream: anyio.abc.ByteReceiveStream) -> AsyncIterator[frames.Reply]:
    decoder = frames.reply_decoder()
    async for data in stream:
        for reply in decoder.feed(data):
            yield reply


async def test_an_abort_in_the_same_burst_finds_its_sequence(serving: Serving, address: str, make_spec: MakeSpec) -> None:
    async with serving(ScriptedExecutor(gated=True)):
        spec = make_spec()
        burst = encode(frames.OpenSequences(1, pack([spec]))) + encode(frames.AbortSequence(spec.sequence_id, 0.0))
        async with await send_all(address, burst + encode(frames.ReadStats(2))) as stream:
            replies = replies_of(stream)
            assert isinstance(await anext(replies), frames.Ready)
            assert await anext(replies) == frames.Opened(1)
            stats = await anext(replies)
        assert isinstance(stats, frames.Stats)
        assert (stats.stats.num_requests_waiting, stats.stats.num_requests_running, stats.stats.num_aborts) == (0, 0, 1)


@pytest.mark.parametrize(
    "rubbish",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xff\xff\xff",
        b"\0\0\0\1\xc1",
        b"\0\0\0\2\x91\x63",
        # An abort whose id is no UTF-8, as what follows half a frame may be.
        b"\0\0\0\5\x93\x02\xa1\xff\xc0",
    ],
)
async def test_a_peer_that_talks_nonsense_is_cut_off_alone(
    serving: Serving, address: str, remote: RemoteEngine, make_spec: MakeSpec, rubbish: bytes
) -> None:
    executor = ScriptedExecutor(gated=True)
    async with serving(executor):
        await remote.start()
        [stream] = await remote.open([spec := make_spec()])
        async with await send_all(address, rubbish) as peer:
            with pytest.raises((anyio.EndOfStream, anyio.BrokenResourceError)):
                while True:
                    await peer.receive()
        executor.open_gate()
        assert (await read_all(stream)).token_ids == continuation(spec.prompt_token_ids, 10)


async def test_a_worker_that_does_not_read_is_treated_as_gone(
    serving: Serving, address: str, remote: RemoteEngine, make_spec: MakeSpec
) -> None:
    limits = LinkLimits(high_water_bytes=1024, backlog_bytes=64 << 10)
    async with serving(ScriptedExecutor(max_model_len=1 << 20, num_blocks=1 << 16), limits=limits) as core:
        await remote.start()
        deaf = [make_spec(max_tokens=1 << 18) for _ in range(4)]
        async with await send_all(address, encode(frames.OpenSequences(1, pack(deaf)))):
            await until(lambda: core.stats().num_aborts == len(deaf))
            [stream] = await remote.open([spec := make_spec()])
            assert (await read_all(stream)).token_ids == continuation(spec.prompt_token_ids, 10)
            assert core.stats().kv_blocks_used == 0


async def test_a_worker_whose_socket_stays_full_is_given_up_after_a_while(
    serving: Serving, address: str, make_spec: MakeSpec
) -> None:
    limits = LinkLimits(high_water_bytes=1, drain_timeout_s=0.2)
    async with serving(ScriptedExecutor(max_model_len=1 << 16, num_blocks=1 << 12), limits=limits) as core:
        specs = [make_spec(max_tokens=30000) for _ in range(2)]
        async with await send_all(address, encode(frames.OpenSequences(1, pack(specs)))):
            await until(lambda: core.stats().num_aborts == len(specs))


async def test_the_death_of_the_loop_reaches_every_worker(
    serving: Serving, address: str, remote: RemoteEngine, make_spec: MakeSpec
) -> None:
    executor = ScriptedExecutor(gated=True)
    async with serving(executor) as core:
        await remote.start()
        [stream] = await remote.open([make_spec()])
        executor.failure = RuntimeError("the device is gone")
        executor.release()
        whole = await read_all(stream)
        assert whole.error is not None
        assert whole.error.code == "engine_dead"
        assert core.failure is not None
        with pytest.raises(EngineDead):
            await remote.open([make_spec()])


async def test_an_engine_that_cannot_start_is_awaited_by_those_whose_supervisor_starts_it_again(address: str) -> None:
    core = EngineCore(EngineConfig(model="scripted"), ScriptedExecutor())
    listener, listening = CountingListener(core), socket.socket(socket.AF_UNIX)
    listening.bind(address)
    listening.listen()
    await listener.listen(listening)
    listener.announce_failure(ConfigError("the device is busy"))
    with pytest.raises(StreamserveError, match="the device is busy"):
        await RemoteEngine(address, reconnects=True).start()
    remote = RemoteEngine(address, reconnects=True, awaits_start=True)
    with anyio.fail_after(20):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(remote.start)
            await until(lambda: listener.num_connections >= 3)
            info = await core.start()
            listener.announce_ready(info)
    assert remote.info == info
    await remote.stop()
    await listener.close()


@pytest.mark.parametrize("awaits_start", [False, True])
async def test_an_engine_that_is_ready_and_fails_in_one_burst_has_not_started(address: str, awaits_start: bool) -> None:
    """Whoever awaited another one took it for an engine that is there, and had no connection for ever."""
    failed = frames.Failed(ErrorInfo("engine_dead", "a rank is gone"))
    bursts = [encode(frames.Ready(ScriptedExecutor().info)) + ending for ending in (encode(failed), b"")]

    async def be_ready(peer: anyio.abc.SocketStream) -> None:
        async with peer:
            await peer.send(bursts.pop(0))
            await anyio.sleep_forever()

    remote = RemoteEngine(address, reconnects=True, awaits_start=awaits_start)
    async with await anyio.create_unix_listener(address) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, be_ready)
        with anyio.fail_after(20):
            if awaits_start:
                await remote.start()
                assert not bursts
            else:
                with pytest.raises(EngineDead, match="a rank is gone"):
                    await remote.start()
            await remote.stop()
        tasks.cancel_scope.cancel()


async def test_a_hung_step_hangs_neither_open_nor_stats(serving: Serving, remote: RemoteEngine, make_spec: MakeSpec) -> None:
    async with serving(ScriptedExecutor(gated=True)):
        await remote.start()
        for count in range(1, 4):
            await remote.open([make_spec()])
            stats = await remote.stats()
            assert stats.num_requests_running + stats.num_requests_waiting == count


@pytest.mark.parametrize("how", ["cancelled", "disconnected"])
async def test_a_caller_that_leaves_while_its_grammar_compiles_leaves_nothing(
    serving: Serving, remote: RemoteEngine, make_spec: MakeSpec, how: str
) -> None:
    compiling, given_up = anyio.Event(), anyio.Event()

    async def compile_for_ever(wanted: StructuredOutputs) -> Constraint:
        compiling.set()
        try:
            await anyio.sleep_forever()
        finally:
            given_up.set()
        raise AssertionError

    async def ask() -> None:
        with suppress(EngineDead):
            await remote.open([make_spec(structured_outputs=CHOICE)])

    async with serving(ScriptedExecutor(), compile_constraint=compile_for_ever) as core:
        await remote.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await compiling.wait()
            if how == "cancelled":
                tasks.cancel_scope.cancel()
            else:
                await remote.stop()
        with anyio.fail_after(5):
            await given_up.wait()
        stats = core.stats()
        assert (stats.num_requests_waiting, stats.num_requests_running) == (0, 0)


async def test_a_caller_cancelled_while_it_waits_for_the_answer_leaves_nothing(
    serving: Serving, remote: RemoteEngine, make_spec: MakeSpec
) -> None:
    async with serving(ScriptedExecutor(gated=True)):
        await remote.start()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(remote.open, [make_spec(), make_spec()])
            await asyncio.sleep(0)
            tasks.cancel_scope.cancel()
        stats = await remote.stats()
        assert (stats.num_requests_waiting, stats.num_requests_running) == (0, 0)


async def test_an_id_in_use_is_refused_and_its_owner_undisturbed(
    serving: Serving, address: str, remote: RemoteEngine, make_spec: MakeSpec
) -> None:
    executor = ScriptedExecutor(gated=True)
    async with serving(executor):
        await remote.start()
        [stream] = await remote.open([spec := make_spec()])
        other = RemoteEngine(address)
        await other.start()
        for engine in (remote, other):
            with pytest.raises(InvalidParameter):
                await engine.open([make_spec(), spec])
        await other.stop()
        executor.open_gate()
        assert (await read_all(stream)).token_ids == continuation(spec.prompt_token_ids, 10)


async def test_structured_outputs_without_a_compiler_are_refused(
    serving: Serving, remote: RemoteEngine, make_spec: MakeSpec
) -> None:
    async with serving(ScriptedExecutor()):
        await remote.start()
        with pytest.raises(UnsupportedParameter) as refusal:
            await remote.open([make_spec(structured_outputs=CHOICE)])
        assert refusal.value.param == "structured_outputs"


async def test_an_engine_that_does_not_answer_is_unavailable(
    address: str, remote: RemoteEngine, monkeypatch: pytest.MonkeyPatch, serving: Serving
) -> None:
    monkeypatch.setattr("streamserve.engine.remote.STATS_TIMEOUT_S", 0.05)

    async def greet_and_fall_silent(peer: anyio.abc.SocketStream) -> None:
        async with peer:
            await peer.send(encode(frames.Ready(ScriptedExecutor().info)))
            await anyio.sleep_forever()

    async with await anyio.create_unix_listener(address) as listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, greet_and_fall_silent)
        await remote.start()
        with pytest.raises(Unavailable):
            await remote.stats()
        tasks.cancel_scope.cancel()


async def test_large_requests_wait_for_their_turn_instead_of_filling_the_connection(
    serving: Serving, address: str, make_spec: MakeSpec
) -> None:
    """Ten requests with long lists of ids, n=128 each, made the server cut its own connection and end 8 of 8 other streams."""
    executor = ScriptedExecutor(gated=True)
    remote = RemoteEngine(address, link_limits=LinkLimits(high_water_bytes=64 << 10, backlog_bytes=3 << 20))
    async with serving(executor):
        await remote.start()
        [innocent] = await remote.open([spec := make_spec()])
        streams: list[SequenceStream] = []

        async def open_many(number: int) -> None:
            allowed = [number] * (1 << 19)
            streams.extend(await remote.open([make_spec(allowed_token_ids=allowed) for _ in range(128)]))

        async with anyio.create_task_group() as tasks:
            for number in range(1, 11):
                tasks.start_soon(open_many, number)
        assert len(streams) == 1280
        for stream in streams:
            stream.close()
        executor.open_gate()
        assert (await read_all(innocent)).token_ids == continuation(spec.prompt_token_ids, 10)
        await remote.stop()


async def test_a_request_with_more_ids_than_a_message_may_hold_is_refused_before_it_is_sent(
    serving: Serving, address: str, make_spec: MakeSpec
) -> None:
    remote = RemoteEngine(address, link_limits=LinkLimits(message_ids=100))
    async with serving(ScriptedExecutor()):
        await remote.start()
        many = [make_spec([7] * 30) for _ in range(4)]
        with pytest.raises(InvalidParameter, match="120 tokens in all its prompts and lists; at most 100") as refused:
            await remote.open(many)
        assert refused.value.param == "prompt"
        shared = many[0].prompt_token_ids
        for stream in await remote.open([msgspec.structs.replace(spec, prompt_token_ids=shared) for spec in many]):
            assert (await read_all(stream)).token_ids == continuation(shared, 10)
        await remote.stop()


async def test_a_caller_that_leaves_while_the_connection_is_full_leaves_nothing(
    serving: Serving, address: str, make_spec: MakeSpec
) -> None:
    remote = RemoteEngine(address, link_limits=LinkLimits(high_water_bytes=1))
    async with serving(ScriptedExecutor(gated=True)) as core:
        await remote.start()
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(remote.open, [make_spec(allowed_token_ids=[1] * (4 << 20))])
            await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
        [stream] = await remote.open([make_spec()])
        assert core.stats().num_requests_waiting + core.stats().num_requests_running == 1
        stream.close()
        await remote.stop()


async def test_while_one_worker_tries_a_suspect_no_other_worker_has_one_begin_but_what_had_tokens_goes_on(
    serving: Serving, address: str, make_spec: MakeSpec
) -> None:
    executor = ScriptedExecutor(gated=True)
    suspect, new, other_suspect, resumed = make_spec(), make_spec(), make_spec(), make_spec(generated_token_ids=[7])
    async with serving(executor):
        one, other = await Worker.connect(address), await Worker.connect(address)
        async with one.stream, other.stream:
            await one.send(frames.OpenSequences(1, pack([suspect]), True))
            assert await one.answer(1)
            await other.send(
                frames.OpenSequences(1, pack([new])),
                frames.OpenSequences(2, pack([other_suspect]), True),
                frames.OpenSequences(3, pack([resumed])),
            )
            assert await other.answer(3)
            assert not {1, 2} & other.answered
            executor.open_gate()
            assert await other.answer(1)
            assert await other.answer(2)


async def test_a_suspect_begins_once_whatever_has_begun_before_it_has_a_token(
    serving: Serving, address: str, make_spec: MakeSpec
) -> None:
    executor = ScriptedExecutor(gated=True)
    async with serving(executor):
        one, other = await Worker.connect(address), await Worker.connect(address)
        async with one.stream, other.stream:
            await other.send(frames.OpenSequences(1, pack([make_spec()])))
            assert await other.answer(1)
            await one.send(frames.OpenSequences(1, pack([make_spec()]), True), frames.ReadStats(2))
            assert await one.answer(2)
            await other.send(frames.OpenSequences(2, pack([make_spec()])), frames.ReadStats(3))
            assert await other.answer(3)
            await one.send(frames.ReadStats(3))
            assert await one.answer(3)
            assert (one.answered, other.answered) == ({2, 3}, {1, 3})
            executor.open_gate()
            assert await one.answer(1)
            assert await other.answer(2)


@pytest.mark.parametrize("how", ["cancelled", "disconnected"])
async def test_a_suspect_that_is_given_up_before_its_turn_is_answered_and_nobody_waits_for_it(
    serving: Serving, address: str, make_spec: MakeSpec, how: str
) -> None:
    suspect = make_spec()
    async with serving(ScriptedExecutor(gated=True)):
        first, one, other = [await Worker.connect(address) for _ in range(3)]
        async with first.stream, one.stream, other.stream:
            # Has no token for as long as the gate is closed.
            await first.send(frames.OpenSequences(1, pack([make_spec()])))
            assert await first.answer(1)
            await one.send(frames.OpenSequences(1, pack([suspect]), True), frames.ReadStats(2))
            assert await one.answer(2)
            await other.send(frames.OpenSequences(1, pack([make_spec()])), frames.ReadStats(2))
            assert await other.answer(2)
            assert not (one.answered | other.answered) & {1}
            if how == "cancelled":
                await one.send(frames.AbortSequence(suspect.sequence_id, None))
                assert not await one.answer(1)
            else:
                await one.stream.aclose()
            assert await other.answer(1)


async def test_an_output_that_is_given_up_while_its_request_waits_takes_the_others_with_it(
    serving: Serving, address: str, make_spec: MakeSpec
) -> None:
    """An abort of a later sequence of the same name found the request that had gone, and not the sequence."""
    first, second = make_spec(), make_spec()
    async with serving(ScriptedExecutor(gated=True)) as core:
        one, other = await Worker.connect(address), await Worker.connect(address)
        async with one.stream, other.stream:
            await one.send(frames.OpenSequences(1, pack([make_spec()]), True))
            assert await one.answer(1)
            await other.send(frames.OpenSequences(1, pack([first, second])), frames.AbortSequence(first.sequence_id, None))
            assert not await other.answer(1)
            await one.stream.aclose()
            await other.send(frames.OpenSequences(2, pack([second])))
            assert await other.answer(2)
            await other.send(frames.AbortSequence(second.sequence_id, None), frames.ReadStats(3))
            assert await other.answer(3)
            stats = core.stats()
            assert (stats.num_requests_waiting, stats.num_requests_running) == (0, 0)


class CountingListener(Listener):
    """Counts those that have connected."""

    num_connections = 0

    def add(self, worker: WorkerConnection) -> None:
        super().add(worker)
        self.num_connections += 1


class Worker:
    """One end of the engine socket that sends commands as they are.

    answered  numbers of the calls that have been answered
    """

    def __init__(self, stream: anyio.abc.ByteStream) -> None:
        self.stream = stream
        self.answered: set[int] = set()
        self._replies = replies_of(stream)

    @classmethod
    async def connect(cls, address: str) -> Worker:
        return cls(await anyio.connect_unix(address))

    async def send(self, *commands: frames.Command) -> None:
        await self.stream.send(b"".join(encode(command) for command in commands))

    async def answer(self, call: int) -> bool:
        """Wait for the answer of a call, which is not a refusal."""
        if call in self.answered:
            return True
        with anyio.fail_after(20):
            async for reply in self._replies:
                if isinstance(reply, frames.Opened | frames.Stats | frames.Refused):
                    self.answered.add(reply.call)
                    if reply.call == call:
                        return not isinstance(reply, frames.Refused)
        raise AssertionError("the engine has hung up")


async def test_a_refusal_is_repeated_without_asking_until_there_is_room(
    serving: Serving, remote: RemoteEngine, make_spec: MakeSpec
) -> None:
    tenant = Tenant(name="limited", max_concurrency=1)
    executor = ScriptedExecutor(gated=True)
    async with serving(executor):
        await remote.start()
        [stream] = await remote.open([make_spec(tenant=tenant)])
        assert remote.refusal(tenant) is None
        with pytest.raises(RateLimited):
            await remote.open([make_spec(tenant=tenant)])
        refusal = remote.refusal(tenant)
        assert isinstance(refusal, RateLimited)
        assert "1 requests at a time" in refusal.message
        assert remote.refusal(Tenant(name="limited", max_concurrency=2)) is None, "with other limits it is asked again"
        assert remote.refusal(Tenant(name="other")) is None
        executor.open_gate()
        await read_all(stream)
        await until(lambda: remote.refusal(tenant) is None)
        await remote.open([make_spec(tenant=tenant)])


async def test_what_a_key_may_still_use_comes_with_each_reply(
    serving: Serving, remote: RemoteEngine, make_spec: MakeSpec
) -> None:
    tenant = Tenant(name="limited", requests_per_minute=2)
    async with serving(ScriptedExecutor()):
        await remote.start()
        assert remote.quotas(tenant) is None
        await remote.open([make_spec(tenant=tenant)])
        assert num_left(remote, tenant) == 1
        await remote.open([make_spec(tenant=tenant)])
        with pytest.raises(RateLimited):
            await remote.open([make_spec(tenant=tenant)])
        assert num_left(remote, tenant) == 0
        refusal = remote.refusal(tenant)
        assert refusal is not None
        assert 25 < refusal.retry_after_s <= 30
        await remote.open([make_spec(tenant=Tenant(name="free"))])
        assert remote.quotas(Tenant(name="free")) is None


def num_left(engine: RemoteEngine, tenant: Tenant) -> int:
    quotas = engine.quotas(tenant)
    assert quotas is not None
    assert quotas.requests is not None
    return int(quotas.requests.level)


def test_a_refusal_holds_for_its_time_or_until_there_is_room() -> None:
    now = [0.0]
    standings = Standings(lambda: now[0])
    limited, crowded, free = (Tenant(name=name) for name in ("limited", "crowded", "free"))
    standings.told_refusal(limited, ErrorInfo("rate_limit_exceeded", "", 30.0), 30.0)
    standings.told_refusal(crowded, ErrorInfo("queue_full", "", 5.0), math.inf)
    standings.told_refusal(free, ErrorInfo("queue_full", "", 5.0), 0.0)
    assert standings.refusal(free) is None
    now[0] = 0.5
    assert [type(standings.refusal(each)) for each in (limited, crowded)] == [RateLimited, QueueFull]
    repeated = standings.refusal(crowded)
    assert repeated is not None
    assert repeated.retry_after_s == 5.0, "not all at one time"
    standings.told_room()
    assert [type(standings.refusal(each)) for each in (limited, crowded)] == [RateLimited, type(None)]
    standings.told_refusal(crowded, ErrorInfo("queue_full", "", 5.0), math.inf)
    now[0] = 2.0
    assert standings.refusal(crowded) is None, "what may wait changes with time"
    refusal = standings.refusal(limited)
    assert refusal is not None
    assert refusal.retry_after_s == 28.0
    now[0] = 30.0
    assert standings.refusal(limited) is None

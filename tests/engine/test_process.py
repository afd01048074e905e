"""An engine in a process of its own, over its real socket, with scripted steps."""

from __future__ import annotations

import json
import os
import select
import signal
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import anyio.to_thread
import pytest

from streamserve.engine.process.launch import EngineProcess, listening_socket
from streamserve.engine.remote import RemoteEngine
from streamserve.engine.stream import StreamLimits
from streamserve.errors import ConfigError, ContextLengthExceeded, EngineDead, InvalidParameter, QueueFull, Unavailable
from streamserve.executor.tuning import COMPILED_SPIN_COUNT, SPIN_COUNT
from streamserve.process.switch_interval import SWITCH_S
from tests.engine.conftest import MakeSpec
from tests.engine.processes import PAUSING_SOON, num_alive, scripted_process, until
from tests.support.process_settings import process_settings
from tests.support.reading import read_all, read_together
from tests.support.scripted import continuation

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def connected(engine: str | EngineProcess, limits: StreamLimits | None = None) -> AsyncIterator[RemoteEngine]:
    remote = RemoteEngine(engine, stream_limits=limits)
    await remote.start()
    try:
        yield remote
    finally:
        await remote.stop()


async def wait_for_exit(pid: int) -> None:
    """Return when a process has ended, whosever child it is."""
    try:
        ended = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    poll = select.poll()
    poll.register(ended, select.POLLIN)
    with anyio.fail_after(15):
        await anyio.to_thread.run_sync(poll.poll, abandon_on_cancel=True)
    os.close(ended)


async def test_what_lies_in_the_working_folder_shadows_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("queue", "grp", "msgspec", "streamserve"):
        (tmp_path / f"{name}.py").write_text("raise RuntimeError('taken from the working folder')")
    monkeypatch.chdir(tmp_path)
    process = scripted_process()
    try:
        async with connected(process.start()) as engine:
            assert num_alive(await engine.stats()) == 0
    finally:
        process.stop()


async def test_the_process_is_tuned_for_a_model_on_a_cpu(
    make_spec: MakeSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(process_settings()["openmp"]):
        monkeypatch.delenv(name)
    monkeypatch.setenv("SETTINGS_FILE", str(tmp_path / "settings.json"))
    async with connected(scripted_process("reporting_settings")) as engine:
        [stream] = await engine.open([make_spec(max_tokens=1)])
        await read_all(stream)
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["switch_interval_s"] == SWITCH_S
    assert settings["openmp"]["GOMP_SPINCOUNT"] in (SPIN_COUNT, COMPILED_SPIN_COUNT)
    assert settings["keeps_freed_memory"]


async def test_tokens_cross_the_socket_and_nothing_stays_behind(make_spec: MakeSpec) -> None:
    fds = set(os.listdir("/proc/self/fd"))
    process = scripted_process()
    async with connected(process) as engine:
        assert stat.S_IMODE(os.stat(process.address).st_mode) == 0o600
        assert stat.S_IMODE(os.stat(Path(process.address).parent).st_mode) == 0o700
        folder, pid = Path(process.address).parent, process.pid
        assert engine.info.model == "scripted"
        specs = [make_spec(max_tokens=40) for _ in range(16)]
        wholes = await read_together(await engine.open(specs))
    assert [whole.token_ids for whole in wholes] == [continuation(spec.prompt_token_ids, 40) for spec in specs]
    assert not folder.exists()
    assert pid is not None
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert set(os.listdir("/proc/self/fd")) <= fds


async def test_refusals_come_back_as_the_exceptions_they_were(process: EngineProcess, make_spec: MakeSpec) -> None:
    async with connected(process.address) as engine:
        with pytest.raises(ContextLengthExceeded):
            await engine.open([make_spec(), make_spec(max_tokens=5000)])
        with pytest.raises(InvalidParameter) as invalid:
            await engine.open([make_spec([-1])])
        assert invalid.value.param == "prompt_token_ids"
        assert invalid.value.message.count("prompt_token_ids") == 1
        with pytest.raises(QueueFull) as full:
            await engine.open([make_spec() for _ in range(20)])
        assert full.value.retry_after_s > 0
        assert num_alive(await engine.stats()) == 0


async def test_a_refused_id_can_be_opened_later(process: EngineProcess, make_spec: MakeSpec) -> None:
    async with connected(process.address) as engine:
        with pytest.raises(ContextLengthExceeded):
            await engine.open([make_spec(sequence_id="again", max_tokens=5000)])
        [stream] = await engine.open([spec := make_spec(sequence_id="again")])
        assert (await read_all(stream)).token_ids == continuation(spec.prompt_token_ids, 10)


async def test_a_worker_that_goes_takes_its_sequences_along_and_no_others(process: EngineProcess, make_spec: MakeSpec) -> None:
    async with connected(process.address, PAUSING_SOON) as stays, connected(process.address, PAUSING_SOON) as goes:
        [kept] = await stays.open([spec := make_spec(max_tokens=4000)])
        lost = await goes.open([make_spec(max_tokens=4000) for _ in range(3)])
        await until(stays, lambda stats: stats.num_requests_paused == 4)
        await goes.stop()
        stats = await until(stays, lambda stats: num_alive(stats) == 1)
        assert stats.num_aborts == 3
        assert (await read_all(kept)).token_ids == continuation(spec.prompt_token_ids, 4000)
        assert {whole.error.code for whole in await read_together(lost) if whole.error} == {"engine_dead"}


async def test_a_slow_reader_is_paused_across_the_socket(process: EngineProcess, make_spec: MakeSpec) -> None:
    async with connected(process.address, PAUSING_SOON) as engine:
        slow, fast = make_spec(max_tokens=4000), make_spec(max_tokens=4000)
        slow_stream, fast_stream = await engine.open([slow, fast])
        assert (await read_all(fast_stream)).token_ids == continuation(fast.prompt_token_ids, 4000)
        assert num_alive(await engine.stats()) == 1
        assert (await read_all(slow_stream)).token_ids == continuation(slow.prompt_token_ids, 4000)


async def test_a_stalled_reader_is_failed_and_its_sequence_taken_out(process: EngineProcess, make_spec: MakeSpec) -> None:
    async with connected(process.address, PAUSING_SOON._replace(stall_timeout_s=0.2)) as engine:
        [stream] = await engine.open([make_spec(max_tokens=4000)])
        await until(engine, lambda stats: stats.num_requests_paused == 1)
        await until(engine, lambda stats: num_alive(stats) == stats.kv_blocks_used == 0)
        whole = await read_all(stream)
        assert whole.error is not None
        assert whole.error.code == "slow_consumer"


async def test_streams_end_with_engine_dead_when_the_process_is_killed(process: EngineProcess, make_spec: MakeSpec) -> None:
    async with connected(process.address, PAUSING_SOON) as engine:
        [stream] = await engine.open([make_spec(max_tokens=4000)])
        await until(engine, lambda stats: stats.num_requests_paused == 1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        whole = await read_all(stream)
        assert len(whole.token_ids) > 20
        assert whole.error is not None
        assert whole.error.code == "engine_dead"
        with pytest.raises(EngineDead):
            await engine.open([make_spec()])
        with pytest.raises(EngineDead):
            await engine.stats()


async def test_an_engine_that_can_not_start_says_why() -> None:
    process = scripted_process("failing_start")
    engine = RemoteEngine(process)
    with pytest.raises(Unavailable):
        _ = engine.info
    with pytest.raises(ConfigError, match="lower --max-model-len"):
        await engine.start()
    assert process.pid is None


async def test_an_engine_that_crashes_at_birth_is_dead(capfd: pytest.CaptureFixture[str]) -> None:
    process = scripted_process("no_such_thing")
    with pytest.raises(EngineDead):
        await RemoteEngine(process).start()
    assert "no_such_thing" in capfd.readouterr().err


async def test_an_engine_can_be_stopped_while_it_loads() -> None:
    process = scripted_process("hanging_start")
    engine = RemoteEngine(process)
    with anyio.move_on_after(0.5) as scope:
        await engine.start()
    assert scope.cancelled_caught
    assert process.pid is None


async def test_an_address_without_an_engine_is_dead(tmp_path: Path) -> None:
    with pytest.raises(EngineDead):
        await RemoteEngine(str(tmp_path / "nothing.sock")).start()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_signals_to_the_group_are_left_to_the_parent(
    process: EngineProcess, make_spec: MakeSpec, number: signal.Signals
) -> None:
    async with connected(process.address) as engine:
        assert process.pid is not None
        os.kill(process.pid, number)
        [stream] = await engine.open([spec := make_spec()])
        assert (await read_all(stream)).token_ids == continuation(spec.prompt_token_ids, 10)


PARENT = """
import os, sys
from streamserve.config import EngineConfig
from streamserve.engine.process.launch import EngineProcess
from tests.support.checkpoints import no_weights
process = EngineProcess(EngineConfig(model="scripted"), no_weights(), executor="tests.support.scripted:instant")
process.start()
print(process.pid, process.address, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def parent(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """A process that has started an engine and prints its pid and address."""
    # `tmp_path` is too long for a socket.
    monkeypatch.setenv("TMPDIR", str(tmp_path_factory.mktemp("t")))
    with subprocess.Popen([sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        yield parent


async def test_the_engine_dies_with_its_parent(parent: subprocess.Popen[str]) -> None:
    assert parent.stdout is not None
    line = await anyio.to_thread.run_sync(parent.stdout.readline)
    pid, address = line.split()
    async with connected(address) as engine:
        assert num_alive(await engine.stats()) == 0
        parent.kill()
        await wait_for_exit(int(pid))


async def test_an_idle_engine_process_uses_no_cpu(process: EngineProcess, make_spec: MakeSpec) -> None:
    def cpu_ticks() -> int:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    async with connected(process.address, PAUSING_SOON) as engine:
        await engine.open([make_spec(max_tokens=4000)])
        await until(engine, lambda stats: stats.num_requests_paused == 1)
        before = cpu_ticks()
        await anyio.sleep(0.5)
        assert cpu_ticks() - before <= 1


def test_a_socket_whose_path_is_too_long_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="set TMPDIR to a shorter folder"):
        listening_socket(str(tmp_path / ("x" * 100)))

"""A further API worker in a process of its own: `python -m streamserve.server.process.worker_process`, started by `workers`.

Joins the port that its parent opened and the engine that its parent started. It ends when its parent says so or is gone, and
leaves signals, which a terminal or a supervisor sends to the whole group, to its parent.
"""

from __future__ import annotations

import signal
import socket
import sys
from functools import partial
from typing import Any

import anyio
import msgspec

from streamserve.checkpoint.files import Checkpoint
from streamserve.config import EngineConfig
from streamserve.engine.remote import RemoteEngine
from streamserve.process.child import decode_with_paths
from streamserve.server.config import ServerConfig
from streamserve.server.process.api_worker import ApiWorker, read_tokenizer, remote_engine
from streamserve.server.process.listen import Listen, join
from streamserve.server.process.logs import configure
from streamserve.server.siblings.control import Control, Question, Ready
from streamserve.server.siblings.siblings import Neighbours, door_of
from streamserve.server.telemetry.metrics import Metrics


class WorkerLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """What a further worker is told, as one line of JSON on its stdin (keys must not show in a process list).

    control_fd  the inherited end of the control pair
    metrics_fd  the inherited shared memory of the counters
    """

    worker: int
    workers: int
    control_fd: int
    metrics_fd: int
    engine_address: str
    engine_config: EngineConfig
    checkpoint: Checkpoint
    server_config: ServerConfig
    sampling_defaults: dict[str, Any]
    listen: Listen


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    launch = decode_with_paths(sys.stdin.buffer.readline(), WorkerLaunch)
    configure(launch.listen.log_level)
    anyio.run(serve, launch, backend_options={"use_uvloop": True})


async def serve(launch: WorkerLaunch) -> None:
    """Serve until the parent says drain, or is gone, or the engine is."""
    metrics = Metrics(
        launch.server_config.model_names[0], memory_fd=launch.metrics_fd, worker=launch.worker, workers=launch.workers
    )
    drained = anyio.Event()

    async def asked(question: Question, id: str) -> int | None:
        return launch.worker if worker.service.has(question, id) else None

    here = Control(asked=asked, on_drain=drained.set)
    neighbours = Neighbours(here.ask, partial(door_of, launch.engine_address))
    worker = ApiWorker(launch.server_config, launch.listen, metrics=metrics, neighbours=neighbours)
    engine = remote_engine(launch.engine_address, launch.engine_config, launch.server_config)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_obey_parent, here, launch.control_fd, tasks.cancel_scope)
            tokenizer = await read_tokenizer(launch.engine_config, launch.checkpoint)
            await worker.connect(engine, tokenizer, launch.checkpoint.eos_token_ids, launch.sampling_defaults)
            tasks.start_soon(_end_with_engine, engine, worker)
            tasks.start_soon(_drain_when_told, drained, worker)
            tasks.start_soon(_tell_when_ready, here, worker, door_of(launch.engine_address, launch.worker))
            await worker.serve(join(launch.listen))
            tasks.cancel_scope.cancel()
    finally:
        await engine.stop()


async def _obey_parent(here: Control, control_fd: int, scope: anyio.CancelScope) -> None:
    await here.run(socket.socket(fileno=control_fd))
    scope.cancel()


async def _tell_when_ready(here: Control, worker: ApiWorker, door: str) -> None:
    await worker.wait_started()
    await worker.open_door(door)
    here.tell(Ready())


async def _drain_when_told(told: anyio.Event, worker: ApiWorker) -> None:
    await told.wait()
    await worker.drain()
    worker.close()


async def _end_with_engine(engine: RemoteEngine, worker: ApiWorker) -> None:
    await engine.wait_ended()
    await worker.fail()
    worker.close()


if __name__ == "__main__":
    main()

"""A further API worker in a process of its own: `python -m streamserve.server.process.worker_process`, started by `workers`.

Shares the port that its parent opened and the engine that its parent started. Ends when its parent drains it or is gone, and
ignores signals: a terminal or a supervisor sends them to the whole group, and the parent handles them.
"""

from __future__ import annotations

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
from streamserve.process.signals import ENDING, MEANINGLESS, ignore
from streamserve.process.switch_interval import shorten_switch_interval
from streamserve.server.config import ServerConfig
from streamserve.server.http.listen import Listen, join
from streamserve.server.http.owned_id import OwnedId
from streamserve.server.process.api_worker import ApiWorker, read_tokenizer, remote_engine
from streamserve.server.process.logs import configure
from streamserve.server.siblings.control import Control, Method, WorkerReady
from streamserve.server.siblings.siblings import Siblings, internal_socket_path
from streamserve.server.telemetry.metrics import Metrics


class WorkerLaunch(msgspec.Struct, frozen=True, kw_only=True):
    """Launch parameters of a further worker: one line of JSON on its stdin (keys must not show in a process list).

    control_fd  the inherited end of the control connection
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
    """Read the launch line and serve; ignores signals."""
    ignore(*ENDING, *MEANINGLESS)
    launch = decode_with_paths(sys.stdin.buffer.readline(), WorkerLaunch)
    configure(launch.listen.log_level)
    shorten_switch_interval()
    anyio.run(serve, launch, backend_options={"use_uvloop": True})


async def serve(launch: WorkerLaunch) -> None:
    """Serve until the parent drains this worker, or the parent or the engine is gone."""
    metrics = Metrics(
        launch.server_config.model_names[0], memory_fd=launch.metrics_fd, worker=launch.worker, workers=launch.workers
    )
    # Those of an earlier process that was this worker have ended with it.
    metrics.reset_gauges()
    drain = anyio.Event()

    async def on_call(method: Method, id: OwnedId) -> int | None:
        return launch.worker if worker.service.on_call(method, id) else None

    control = Control(on_call=on_call, on_drain=drain.set)
    siblings = Siblings(control.call, partial(internal_socket_path, launch.engine_address))
    worker = ApiWorker(launch.server_config, launch.listen, metrics=metrics, siblings=siblings)
    engine = remote_engine(launch.engine_address, launch.engine_config, launch.server_config, metrics)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_run_control, control, launch.control_fd, tasks.cancel_scope)
            tasks.start_soon(control.beat)
            tokenizer = await read_tokenizer(launch.engine_config, launch.checkpoint)
            await worker.connect(engine, tokenizer, launch.checkpoint.eos_token_ids, launch.sampling_defaults)
            tasks.start_soon(_end_with_engine, engine, worker)
            tasks.start_soon(_drain_on_request, drain, worker)
            tasks.start_soon(_report_ready, control, worker, internal_socket_path(launch.engine_address, launch.worker))
            await worker.serve(join(launch.listen))
            tasks.cancel_scope.cancel()
    finally:
        await engine.stop()


async def _run_control(control: Control, control_fd: int, scope: anyio.CancelScope) -> None:
    await control.run(socket.socket(fileno=control_fd))
    scope.cancel()


async def _report_ready(control: Control, worker: ApiWorker, internal_socket: str) -> None:
    await worker.wait_started()
    await worker.open_internal_socket(internal_socket)
    control.send(WorkerReady())


async def _drain_on_request(drain: anyio.Event, worker: ApiWorker) -> None:
    await drain.wait()
    await worker.drain()
    worker.close()


async def _end_with_engine(engine: RemoteEngine, worker: ApiWorker) -> None:
    await engine.wait_ended()
    await worker.fail()
    worker.close()


if __name__ == "__main__":
    main()

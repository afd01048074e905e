"""A further API worker in a process of its own: `python -m streamserve.server.process.worker_process`, started by `workers`.

Accepts from a socket that its parent keeps, and shares the engine that its parent started. Ends when its parent drains or
replaces it, or is gone. Ignores signals: a terminal or a supervisor sends them to the group, and the parent handles them.
"""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import Awaitable, Callable

import anyio

from streamserve.aio.wakeup import Wakeup
from streamserve.errors import ConfigError
from streamserve.process.child import decode_with_paths
from streamserve.process.signals import ENDING, MEANINGLESS, ignore
from streamserve.process.switch_interval import shorten_switch_interval
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.process.api_worker import ApiWorker, read_tokenizer
from streamserve.server.process.logs import configure
from streamserve.server.process.worker_launch import ServedEngine, WorkerLaunch
from streamserve.server.siblings.control import Control, Method, WorkerReady
from streamserve.server.siblings.siblings import Siblings

logger = logging.getLogger("streamserve.server")


def main() -> None:
    """Read the launch line and serve; ignores signals."""
    ignore(*ENDING, *MEANINGLESS)
    launch = decode_with_paths(sys.stdin.buffer.readline(), WorkerLaunch)
    configure(launch.listen.log_level)
    shorten_switch_interval()
    anyio.run(serve, launch, backend_options={"use_uvloop": True})


async def serve(launch: WorkerLaunch) -> None:
    """Serve until the parent drains or replaces this worker, or the parent or the engine is gone."""
    metrics = launch.metrics()
    # Those of an earlier process that was this worker have ended with it.
    metrics.reset_gauges()
    drain, retire, keys_changed = anyio.Event(), anyio.Event(), Wakeup()

    async def on_call(method: Method, id: OwnedId) -> int | None:
        return launch.worker if worker.service.on_call(method, id) else None

    control = Control(on_call=on_call, on_drain=drain.set, on_retire=retire.set, on_keys=keys_changed.set)
    siblings = Siblings(control.call, launch.internal_socket)
    worker = ApiWorker(launch.server_config, launch.listen, metrics=metrics, siblings=siblings)
    engine = launch.engine(metrics)
    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(_run_control, control, launch.control_fd, tasks.cancel_scope)
            tasks.start_soon(control.beat)
            tasks.start_soon(_reload_keys, keys_changed, worker)
            tokenizer = await read_tokenizer(launch.engine_config, launch.checkpoint)
            await worker.connect(engine, tokenizer, launch.checkpoint.eos_token_ids, launch.sampling_defaults)
            tasks.start_soon(_end_with_engine, engine, worker)
            tasks.start_soon(_end_on_request, drain, worker.drain, worker)
            tasks.start_soon(_end_on_request, retire, worker.retire, worker)
            tasks.start_soon(_report_ready, control, worker, launch.internal_socket(launch.worker))
            await worker.serve(socket.socket(fileno=launch.listening_fd))
            tasks.cancel_scope.cancel()
    finally:
        await engine.stop()


async def _run_control(control: Control, control_fd: int, scope: anyio.CancelScope) -> None:
    await control.run(socket.socket(fileno=control_fd))
    scope.cancel()


async def _reload_keys(keys_changed: Wakeup, worker: ApiWorker) -> None:
    """Read the keys again whenever they have changed, until cancelled."""
    while True:
        await keys_changed.wait()
        try:
            await worker.reload_keys()
        except ConfigError as error:
            # It was read a moment ago by the first worker, whose keys this one will take when it is replaced.
            logger.warning("the keys are not reloaded: %s", error.message)


async def _report_ready(control: Control, worker: ApiWorker, internal_socket: str) -> None:
    await worker.wait_started()
    await worker.open_internal_socket(internal_socket)
    control.send(WorkerReady())


async def _end_on_request(request: anyio.Event, finish: Callable[[], Awaitable[None]], worker: ApiWorker) -> None:
    await request.wait()
    await finish()
    worker.close()


async def _end_with_engine(engine: ServedEngine, worker: ApiWorker) -> None:
    await engine.wait_ended()
    await worker.fail()
    worker.close()


if __name__ == "__main__":
    main()

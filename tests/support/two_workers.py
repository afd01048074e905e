"""Two API workers of one server, in the test's own event loop."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio

from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.siblings.control import Control, Method
from streamserve.server.siblings.siblings import Siblings
from tests.support.live_server import LiveServer, live_server
from tests.support.scripted_engine import ScriptedEngine


@asynccontextmanager
async def two_workers(engine: ScriptedEngine, folder: Path, **config: Any) -> AsyncIterator[tuple[LiveServer, LiveServer]]:
    """Two workers with internal sockets and a control connection."""
    internal_sockets = [str(folder / f"{worker}.sock") for worker in range(2)]
    workers: list[LiveServer] = []

    def control_of(worker: int) -> Control:
        async def on_call(method: Method, id: OwnedId) -> int | None:
            return worker if workers[worker].service.on_call(method, id) else None

        return Control(on_call=on_call)

    def started(worker: int) -> Any:
        siblings = Siblings(controls[worker].call, internal_sockets.__getitem__)
        return live_server(engine, siblings=siblings, internal_socket=internal_sockets[worker], **config)

    controls = [control_of(worker) for worker in range(2)]
    async with started(0) as one, started(1) as other, anyio.create_task_group() as tasks:
        workers += [one, other]
        for control, end in zip(controls, socket.socketpair(), strict=True):
            tasks.start_soon(control.run, end)
        yield one, other
        tasks.cancel_scope.cancel()

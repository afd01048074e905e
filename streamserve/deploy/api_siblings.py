"""The other API workers of an application, on whatever host: which of them has a request, and how to reach it.

On one API worker's event loop. Each worker listens twice behind gateways: for HTTP, and for calls about requests. For every
other one this worker holds a control connection and a local socket whose connections lead there, so that it forwards requests
and streams as between API workers of one host (`server.siblings`).
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import anyio

from streamserve.deploy.directory import Member
from streamserve.engine.ipc.tcp import Gateway, Outlet, TcpAddress, open_tcp
from streamserve.engine.process.launch import listening_socket
from streamserve.process.owned_folder import OwnedFolder
from streamserve.server.http.access.owned_id import OwnedId
from streamserve.server.siblings.control import Control, Method

logger = logging.getLogger(__name__)


class ApiSiblings:
    """This worker's end of all, and the others.

    on_call  executes a call of another worker here; False when this one does not have the request
    """

    def __init__(self, on_call: Callable[[Method, OwnedId], bool]) -> None:
        self._on_call = on_call
        self._folder = OwnedFolder()
        self._gateways = [Gateway(self.http_path), Gateway(self._control_path)]
        self._siblings: dict[str, _Sibling] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def http_path(self) -> str:
        """Where this worker is to serve HTTP."""
        return str(self._folder.path / "http.sock")

    @property
    def _control_path(self) -> str:
        return str(self._folder.path / "control.sock")

    async def listen(self, host: str) -> tuple[TcpAddress, TcpAddress]:
        """Accept other workers at an address of this host; returns where for HTTP, and where for calls."""
        self._spawn(self._accept(listening_socket(self._control_path)))
        http, control = [await gateway.listen(host) for gateway in self._gateways]
        return http, control

    async def call(self, method: Method, id: OwnedId) -> int | None:
        """As `server.siblings.control.CallSiblings`, on all others at once."""
        found: list[int] = []
        silent: list[_Sibling] = []
        async with anyio.create_task_group() as tasks:

            async def call(sibling: _Sibling) -> None:
                try:
                    if await sibling.control.call(method, id) is not None:
                        found.append(sibling.number)
                        tasks.cancel_scope.cancel()
                except TimeoutError:
                    silent.append(sibling)

            for sibling in self._siblings.values():
                tasks.start_soon(call, sibling)
        if silent and not found:
            raise TimeoutError
        return found[0] if found else None

    def internal_socket(self, number: int) -> str:
        """The path of a local socket that leads to a worker."""
        return str(self._folder.path / f"api-{number}.sock")

    async def update(self, members: Sequence[Member], own_id: str) -> None:
        """Connect to the workers that are new. Those that have gone end their connections."""
        for member in members:
            if member.kind == "api" and member.id != own_id and member.id not in self._siblings and member.control is not None:
                sibling = _Sibling(next(self._numbers))
                try:
                    connection = await open_tcp(member.control)
                    await sibling.outlet.listen(member.address, self.internal_socket(sibling.number))
                except OSError as error:
                    # It has ended meanwhile, or is there when it is looked at again.
                    logger.warning("API worker %s can't be reached: %s", member.id, error)
                    continue
                self._siblings[member.id] = sibling
                self._spawn(self._follow(member.id, sibling, connection))

    async def close(self) -> None:
        """Close every connection."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for gateway in self._gateways:
            await gateway.close()
        self._folder.remove()

    async def _follow(self, id: str, sibling: _Sibling, connection: socket.socket) -> None:
        """Hold a connection until the other worker is gone."""
        try:
            await sibling.control.run(connection)
        finally:
            self._siblings.pop(id, None)
            await sibling.outlet.close()

    async def _accept(self, listening: socket.socket) -> None:
        """Answer the calls of whoever connects."""

        async def on_call(method: Method, id: OwnedId) -> int | None:
            return 0 if self._on_call(method, id) else None

        with listening:
            listening.setblocking(False)
            while True:
                connection, _ = await asyncio.get_running_loop().sock_accept(listening)
                self._spawn(Control(on_call=on_call).run(connection))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


class _Sibling:
    """Another worker, under the number that it has here."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.control = Control(on_call=_no_call)
        self.outlet = Outlet()


async def _no_call(method: Method, id: OwnedId) -> int | None:
    """It calls over the connection that it has opened itself."""
    return None

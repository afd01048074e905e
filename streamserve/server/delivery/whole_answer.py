"""An answer as one JSON object, sent when every choice has finished; a client that leaves before that ends its sequences."""

from __future__ import annotations

from functools import partial

import anyio
from litestar.types import Receive, Scope, Send

from streamserve.errors import StreamserveError
from streamserve.server.delivery.asgi import Headers, send_json, wait_disconnected
from streamserve.server.delivery.events import Collector
from streamserve.server.delivery.run import Run
from streamserve.server.http.bodies.large_work import LargeWork
from streamserve.server.http.errors import ErrorBody, send_error


class WholeAnswer:
    """An ASGI app that collects a run and sends the result.

    error_body   the shape of errors in the API that answers
    large_work   makes large answers' JSON
    """

    def __init__(
        self, run: Run, collector: Collector, *, error_body: ErrorBody, headers: Headers, large_work: LargeWork
    ) -> None:
        self._run = run
        self._collector = collector
        self._error_body = error_body
        self._headers = headers
        self._large_work = large_work

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._run as run, anyio.create_task_group() as tasks:
            tasks.start_soon(self._watch, receive)
            await run.answer(partial(self._collect, send), partial(self._write_failure, send))
            tasks.cancel_scope.cancel()

    async def _collect(self, send: Send) -> None:
        async for delta in self._run:
            self._collector.add(delta)
        body = await self._large_work.runner(self._collector.num_bytes)(self._collector.body)
        self._run.has_ending = True
        await send_json(send, body, [*self._headers, *self._run.headers])

    async def _write_failure(self, send: Send, error: StreamserveError) -> None:
        await send_error(send, error, error_body=self._error_body, headers=self._run.headers)

    async def _watch(self, receive: Receive) -> None:
        await wait_disconnected(receive)
        self._run.leave()
